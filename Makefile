# make quickstart   install, fetch the embedded model, fine-tune it, show what it learned
# make test         install and run the default test suite
# make test-lowest  the default test suite with the lowest versions that pyproject.toml allows, in a place of its own
# make gpu-wheels   fetch what benchmarks.gpu needs on a machine with a GPU and no network
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
DEEPSPEED := .venv/deepspeed
LOWEST := .venv-lowest
GPU_WHEELS := .gpu-wheels
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(foreach glibc,2_28 2_27 2_17,--platform manylinux_$(glibc)_x86_64) --platform manylinux2014_x86_64
MOST_KIB := 61440

.PHONY: install install-dev quickstart test test-slow test-lowest chromium gpu-wheels check format clean

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

test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) -m tests.lowest > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r $(LOWEST)/requirements.txt -e .[dev]
	$(LOWEST)/bin/python -m pytest -n 2

# One version of each package, or they could not be installed together; with the code they may take 60 MiB.
gpu-wheels: | $(BIN)/python
	rm -rf $(GPU_WHEELS)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--implementation cp --python-version $(GPU_PYTHON) $(GPU_PLATFORMS) \
		--dest $(GPU_WHEELS) -r benchmarks/gpu/requirements.txt
	@kib=$$(( $$(du -sk $(GPU_WHEELS) | cut -f1) + $$(git ls-files -z | du -ck --files0-from=- | tail -1 | cut -f1) )); \
	echo "$(GPU_WHEELS): $$(ls $(GPU_WHEELS) | wc -l) wheels; with the code $$(( kib / 1024 )) MiB"; \
	[ $$kib -le $(MOST_KIB) ] || { echo "that is more than $$(( $(MOST_KIB) / 1024 )) MiB" >&2; exit 1; }

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(LOWEST) $(GPU_WHEELS) .mypy_cache .pytest_cache .ruff_cache
