"""Locks: one process at a time writes to a place, whichever command it runs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deft.commands.app import main
from deft.errors import UserError
from deft.locks import lock_of, place_held
from deft.publish.export import export
from deft.quickstart.job import quickstart
from deft.testing.tiny import save_tiny


@pytest.fixture(autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("锁")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """Return a place that another process holds the lock of."""
    place = tmp_path / "出"
    code = "import sys; from pathlib import Path; from deft.locks import place_held\n"
    code += "with place_held(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield place
        process.kill()


def test_a_place_is_written_by_one_process_and_free_once_that_is_gone(taken: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "模型", "llama", seed=1)
    for write in (lambda: export(model, taken), lambda: export(model, tmp_path / "." / "出", overwrite=True)):
        with pytest.raises(UserError, match="another deft process is writing there") as caught:
            write()
        assert "name another place" in caught.value.fix
    assert not taken.exists()
    with place_held(tmp_path / "别处"):
        pass


def test_what_another_process_has_just_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was not there when the command began; it is once the other process lets go."""
    model, out = save_tiny(tmp_path / "模型", "llama", seed=1), tmp_path / "出"
    monkeypatch.setattr("deft.publish.export.check_sources", lambda *_, **__: out.mkdir())
    with pytest.raises(UserError, match="already exists"):
        export(model, out)
    assert list(out.iterdir()) == []


def test_two_quickstarts_in_one_folder_are_refused(tmp_path: Path) -> None:
    with place_held(tmp_path / ".quickstart"), pytest.raises(UserError, match="another deft process is writing there"):
        quickstart(runs=tmp_path, model=str(save_tiny(tmp_path / "模型", "llama", seed=1)))


def test_the_lock_of_a_place_is_not_followed_where_somebody_planted_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "重要.txt"
    victim.write_text("别动", encoding="utf-8")
    lock_of(tmp_path / "出").symlink_to(victim)
    with pytest.raises(UserError, match="cannot write"), place_held(tmp_path / "出"):
        raise AssertionError("it must not begin")
    assert victim.read_text(encoding="utf-8") == "别动"


def test_no_hub_is_asked_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for arguments, expected in ((["models"], None), (["models", "--no-hub"], "1"), (["--no-hub", "models"], "1")):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        assert os.environ.pop("HF_HUB_OFFLINE", None) == expected


def test_ctrl_c_before_there_is_anything_to_keep_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deft.commands.models.models_table", interrupt)
    with pytest.raises(SystemExit) as left:
        main(["models"])
    assert (left.value.code, capsys.readouterr().err) == (130, "\ninterrupted\n")
