# make quickstart   install, fetch the embedded model, fine-tune it, show what it learned
# make test         install and run the default test suite
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
DEEPSPEED := .venv/deepspeed

.PHONY: install install-dev quickstart test test-slow chromium check format clean

install: $(STAMP)
install-dev: $(DEV_STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "deft needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

$(STAMP): requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(DEV_STAMP): requirements-dev.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Beside the other packages, because transformers imports DeepSpeed wherever it finds it, and it talks. It comes as
# source, whose build asks for the torch that is here; none of its own kernels are compiled.
$(DEEPSPEED)/.installed: $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check wheel setuptools
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--upgrade --target $(DEEPSPEED) deepspeed==0.19.8 einops hjson msgpack ninja py-cpuinfo
	touch $@

quickstart: install
	$(BIN)/deft quickstart

test: install-dev
	$(BIN)/python -m pytest -n 2

# The browser of the page's tests: the system's, else Debian's package, else the one that Playwright brings.
chromium: install-dev
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	[ "$$(id -u)" = 0 ] && as_root= || as_root="sudo -n"; \
	if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
		$$as_root apt-get update -qq && $$as_root apt-get install -y -qq chromium; \
	else \
		$(BIN)/python -m playwright install chromium; \
	fi

test-slow: install-dev $(DEEPSPEED)/.installed chromium
	$(BIN)/deft pull smollm2-135m
	$(BIN)/python -m pytest -m slow

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
