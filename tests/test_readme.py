"""The two READMEs and the pages of `docs/`: their commands run, their links lead somewhere, their languages agree.

Every fenced ```bash, ```sh and ```python block is taken out of the page, and its commands run in order in a folder that
has what the repository has. A comment above a block may say how:

- `<!-- test: slow -->`: only with the real embedded model;
- `<!-- test: skip because … -->`: never;
- `<!-- test: stop a run first -->`: the block's command continues a run, so one is begun, and stopped after a step.

So that they are cheap, commands run in this process (`run_train.sh` as the script it calls), training takes a few
steps (`--max-steps`), what `make` would do is only listed (`make -n`), the chat page is built and not served, and a
tiny random model stands in for the embedded one (the `slow` test takes the real one, and a shell).
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.pages import FENCE, LINK, ROOT, broken_links

from deft.commands import app as cli
from deft.errors import UserError
from deft.hub.embedded import WHEELS, find_damage, source_facts
from deft.hub.known import KNOWN_MODELS, MODELS_DIR_VARIABLE, SOURCE_FILE
from deft.testing.tiny import save_tiny

READMES = ("README.md", "README.zh-CN.md")
DOCS = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))
PAGES = (*READMES, "CHANGELOG.md", "LOG.md", *DOCS)
MODEL = "smollm2-135m"
NEEDED = ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml", "examples", "recipes", ".venv")
NEEDED += ("run_train.sh", "train_sft.py", "inference.py", "chat_gradio.py", "model_identity.txt")
TINY_STEPS, REAL_STEPS = 3, 2
TYPED = "What is 2 + 2?\n/exit\n"

MARK = re.compile(r"<!-- test: (.+?) -->\s*\Z")
SKIP = re.compile(r"skip because \S.+")
STOP_FIRST = "stop a run first"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: `where` is `page:line`; `mark` is what the comment above it says, or ""."""

    where: str
    language: str
    text: str
    mark: str

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The words of each command; a `\\` at the end of a line joins it with the next one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return tuple(words for line in lines if (words := tuple(shlex.split(line, comments=True))))


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the blocks of a page that can run.

    Raises:
        ValueError: for a comment to this test that it does not know.
    """
    found = []
    for match in FENCE.finditer(text):
        where = f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
        comment = MARK.search(text, 0, match.start())
        mark = comment[1] if comment else ""
        if not (mark in ("", "slow", STOP_FIRST) or SKIP.fullmatch(mark)):
            raise ValueError(f"{where}: unknown comment to the test: {mark}")
        if match[2] in ("bash", "sh", "python"):
            found.append(Block(where=where, language=match[2], text=match[3], mark=mark))
    return found


def blocks_in(page: str) -> list[Block]:
    return blocks_of(page, (ROOT / page).read_text(encoding="utf-8"))


def what_runs(block: Block) -> tuple[object, ...]:
    """Return what must be the same in both languages: the commands, or the lines of Python, without comments."""
    if block.language != "python":
        return (block.mark, *block.commands)
    lines = (line.partition("  #")[0].rstrip() for line in block.text.splitlines())
    return (block.mark, *(line for line in lines if line and not line.lstrip().startswith("#")))


# Running


class Shell:
    """A stand-in for the user's shell, in a folder that looks like the repository.

    `max_steps` keeps training short; with `real`, shell scripts run in a shell.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, max_steps: int, real: bool = False) -> None:
        self.folder, self.monkeypatch, self.max_steps, self.real = folder, monkeypatch, max_steps, real

    def run(self, block: Block) -> None:
        """Run a block; fail with its place."""
        try:
            if block.language == "python":
                self.python(block)
                return
            for words in block.commands:
                if block.mark == STOP_FIRST:
                    self.begin_and_stop(words)
                self.command(words)
        except BaseException as error:
            if not isinstance(error, Exception | SystemExit | pytest.fail.Exception):
                raise
            raise AssertionError(f"{block.where}: {type(error).__name__}: {error}\n{block.text}") from error

    def python(self, block: Block) -> None:
        code = compile("\n" * int(block.where.rpartition(":")[2]) + block.text, block.where.rpartition(":")[0], "exec")
        with self.fresh_modules():
            exec(code, {"__name__": "__main__"})

    @contextlib.contextmanager
    def fresh_modules(self) -> Iterator[None]:
        """Let Python find the scripts of the folder, and forget them afterwards."""
        self.monkeypatch.syspath_prepend(str(self.folder))
        try:
            yield
        finally:
            sys.modules.pop("inference", None)

    def command(self, words: tuple[str, ...], *, expect: int = 0) -> None:
        """Run one command and check its exit code."""
        program, *arguments = words
        short = [f"--max-steps={self.max_steps}"]
        if program == "deft":
            trains = arguments[:1] == ["train"]
            self.call(lambda: cli.main(arguments + (short if trains else [])), expect)
            if trains:
                self.check_trained()
        elif program == "python" and arguments[0].endswith(".py"):
            trains = arguments[0] == "train_sft.py"
            self.script(arguments + (short if trains else []), expect)
        elif words[:2] == ("bash", "run_train.sh"):
            if self.real:
                activated = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
                done = subprocess.run(
                    [*words, *short], cwd=self.folder, env=activated, capture_output=True, text=True, check=False
                )
                assert done.returncode == expect, done.stderr
            else:
                assert 'train_sft.py "$@"' in (self.folder / "run_train.sh").read_text(encoding="utf-8")
                self.script(["train_sft.py", *arguments[1:], *short], expect)
            self.check_trained()
        elif program == "make":
            done = subprocess.run([program, "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        elif program == "source":
            assert arguments == [".venv/bin/activate"]
            assert "BIN := .venv/bin" in (ROOT / "Makefile").read_text(encoding="utf-8")
        else:
            pytest.fail(f"the test knows no way to run {program!r}")

    def script(self, arguments: list[str], expect: int) -> None:
        """Run a script of the folder as a program."""
        self.monkeypatch.setattr(sys, "argv", arguments)
        with self.fresh_modules():
            self.call(lambda: runpy.run_path(str(self.folder / arguments[0]), run_name="__main__"), expect)

    def call(self, main: object, expect: int) -> None:
        """Call what ends with `SystemExit`, with something typed at the terminal."""
        assert callable(main)
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(TYPED))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == expect, f"exit code {stopped.value.code}"

    def check_trained(self) -> None:
        """Check that the newest run has a checkpoint that knows its chat format."""
        assert (self.folder / "runs/latest/best/chat_format.json").exists()

    def begin_and_stop(self, words: tuple[str, ...]) -> None:
        """Begin the run that a command continues, and stop it after one step, as the first Ctrl-C would."""
        from deft.training.progress import Progress

        assert "--resume-training" in words
        stepped = Progress.stepped

        def stop(progress: Progress, step: int) -> None:
            stepped(progress, step)
            progress.stop_asked = True

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Progress, "stepped", stop)
            self.command(tuple(word for word in words if word != "--resume-training"), expect=130)


def furnished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put into a folder what a clone of the repository has, and make it the current one."""
    for name in NEEDED:
        if (ROOT / name).is_dir():
            (folder / name).symlink_to(ROOT / name)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv(MODELS_DIR_VARIABLE, raising=False)
    monkeypatch.setattr("deft.serve.web.serve_page", build_only)
    return folder


def build_only(assistant: object, _: object, *, lang: str) -> None:
    """Build the chat page, as `serve_page` does, and do not wait for visitors."""
    from deft.serve.web import build_page

    build_page(assistant, lang=lang)  # type: ignore[arg-type]


def save_stand_in(folder: Path) -> None:
    """Write a tiny random model that deft takes for the embedded one."""
    save_tiny(folder)
    files = {path.name: {"num_bytes": path.stat().st_size, "sha256": ""} for path in sorted(folder.iterdir())}
    facts = source_facts(KNOWN_MODELS[MODEL]) | {"gguf": {"sha256": WHEELS[MODEL].gguf_sha256}, "files": files}
    (folder / SOURCE_FILE).write_text(json.dumps(facts), encoding="utf-8")
    assert find_damage(folder, KNOWN_MODELS[MODEL]) is None, "the stand-in is no stand-in any more"


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the English README (the Chinese has the same: next test), then the Python of the other pages."""
    folder = furnished(tmp_path, monkeypatch)
    save_stand_in(folder / "models" / MODEL)
    shell = Shell(folder, monkeypatch, max_steps=TINY_STEPS)
    runnable = [block for block in blocks_in(READMES[0]) if block.mark in ("", STOP_FIRST)]
    assert len(runnable) > 10
    for block in runnable:
        shell.run(block)
    assert (folder / "my_data.jsonl").exists()
    for page in DOCS:
        for block in blocks_in(page):
            if block.language == "python" and not block.mark:
                shell.run(block)


@pytest.mark.slow
def test_the_commands_run_with_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_damage(ROOT / "models" / MODEL, KNOWN_MODELS[MODEL]) is not None:
        pytest.skip(f"the embedded model is not here: deft pull {MODEL}")
    folder = furnished(tmp_path, monkeypatch)
    (folder / "models").symlink_to(ROOT / "models")
    shell = Shell(folder, monkeypatch, max_steps=REAL_STEPS, real=True)
    for block in blocks_in(READMES[0]):
        if not SKIP.fullmatch(block.mark):
            shell.run(block)
            for state in folder.glob("runs/*/checkpoint-*/optimizer.pt"):  # a gigabyte each
                state.unlink()


def test_both_languages_have_the_same_commands() -> None:
    english, chinese = ([what_runs(block) for block in blocks_in(page)] for page in READMES)
    assert english == chinese


def test_make_quickstart_and_make_test_are_targets() -> None:
    blocks = [block for block in blocks_in(READMES[0]) if block.language != "python"]
    commands = [words for block in blocks for words in block.commands if words[0] == "make"]
    assert commands == [("make", "quickstart"), ("make", "test")]
    for target, does in (("quickstart", "deft quickstart"), ("test", "pytest")):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert does in done.stdout


@pytest.mark.parametrize("page", DOCS)
def test_the_commands_of_the_docs_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags and values are checked; nothing runs."""
    monkeypatch.chdir(ROOT)
    for block in blocks_in(page):
        for words in block.commands if block.language != "python" else ():
            understand(words, block.where)


def understand(words: tuple[str, ...], where: str) -> None:
    """Check a command's flags and values.

    Raises:
        AssertionError: if it would be refused.
    """
    from deft.ancestor.flags import config_from_flags

    words = words[words.index("|") + 1 :] if "|" in words else words
    words = tuple(word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word))  # variables of the environment
    program, *arguments = words
    if program == "torchrun":  # what it starts is a module of ours, with flags like any other command
        program, *arguments = words[words.index("-m") + 1 :]
    try:
        if program == "deft":
            cli.app.parse_args(arguments, exit_on_error=False, print_error=False)
        elif "train_sft.py" in words or "run_train.sh" in words:
            config_from_flags(arguments[1:])
        else:
            assert words[:2] == ("python", "chat_gradio.py"), f"the test does not know {program}"
    except Exception as error:
        raise AssertionError(f"{where}: {shlex.join(words)}: {error}") from error


# Links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_every_page_of_the_docs_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [page for page in DOCS if page != "docs/README.md" and f"({Path(page).name})" not in index] == []


def test_every_refusal_reason_is_explained() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/deft/prompt").rglob("*.py"))
    reasons = set(re.findall(r'NotTrainable\(\s*"(\w+)"', source)) | {
        "template_repeats_content",
        "template_hides_content",
    }
    assert len(reasons) >= 9
    page = (ROOT / "docs/chat-format.md").read_text(encoding="utf-8")
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()


# The tests can fail


def sample(text: str, mark: str = "") -> list[Block]:
    return blocks_of("页.md", f"# 页\n\n{mark}\n{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "```bash\ndeft data show missing.jsonl\n```",
        "```bash\ndeft trian\n```",
        "```sh\nrm -rf x\n```",
        "```bash\nmake nothing\n```",
        "```python\nassert 1 == 2\n```",
        "```python\nimport inference_that_is_not_there\n```",
    ],
)
def test_a_wrong_block_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = sample(text)
    with pytest.raises(AssertionError, match=r"页\.md:4: "):
        Shell(tmp_path, monkeypatch, max_steps=1).run(block)


@pytest.mark.parametrize("command", ["deft train --lerning-rate 1", "deft train --batch-size 0", "rm x"])
def test_a_wrong_command_is_not_understood(command: str) -> None:
    with pytest.raises(AssertionError, match="here: "):
        understand(tuple(shlex.split(command)), "here")


def test_comments_and_continued_lines() -> None:
    [block] = sample("```bash\n# 注释\ndeft models  # all\ndeft pull \\\n  x\n```", "<!-- test: slow -->")
    assert block.commands == (("deft", "models"), ("deft", "pull", "x"))
    assert block.mark == "slow"
    with pytest.raises(ValueError, match="unknown comment"):
        sample("```bash\nls\n```", "<!-- test: skip -->")


def test_other_commands_are_told_apart() -> None:
    [one], [other] = sample("```python\nx = 1  # one\n```"), sample("```python\n# 一\nx = 1\n```")
    assert what_runs(one) == what_runs(other)
    [different] = sample("```python\nx = 2\n```")
    assert what_runs(one) != what_runs(different)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "页.md"
    page.write_text("# 一 A\n[a](b.md) ![p](图.png) [h](#一-a) [w](#none) [s](https://example.org)\n```\n[c](d)\n```\n")
    assert broken_links(page) == ["b.md", "图.png", "#none"]


def test_a_user_error_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("refused")

    with pytest.raises(UserError):
        Shell(tmp_path, monkeypatch, max_steps=1).call(refuse, 0)


@pytest.mark.parametrize("page", READMES)
def test_the_paper_and_the_ancestors_are_named_linked_and_cited(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "Dynamics of Instruction Tuning: Each Ability of Large Language Models Has Its Own Growth Pace" in text
    links = set(LINK.findall(text))
    assert {
        "https://arxiv.org/abs/2310.19651",
        "https://github.com/ChiyuSONG/data-efficient-training-of-LLMs",
        "https://github.com/ChiyuSONG/dynamics-of-instruction-tuning",
        "https://huggingface.co/datasets/ChiyuSONG/dynamics-of-instruction-tuning",
    } <= links
    [citation] = re.findall(r"^```bibtex\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert "2310.19651" in citation
    assert ("deft is made for research" if page == "README.md" else "deft 用于学术研究") in text


@pytest.mark.parametrize(
    ("page", "uses"), [("README.md", ["you are Ada", "ticket"]), ("README.zh-CN.md", ["你叫小艾", "工单"])]
)
def test_both_uses_of_an_identity_are_shown(page: str, uses: list[str], tmp_path: Path) -> None:
    """Each as it would stand in the file, which is read as it is shown."""
    from deft.prompt.identity import read_identity

    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for use in uses:
        [shown] = [block for block in blocks if use in block]
        (tmp_path / "model_identity.txt").write_text(shown, encoding="utf-8")
        assert read_identity(tmp_path / "model_identity.txt") == shown.strip()


def test_a_token_has_one_name_in_chinese() -> None:
    text = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "词元" in prose
    assert not re.search(r"\btokens?\b|令牌|标记数", re.sub(r"`[^`]*`", "", prose))
