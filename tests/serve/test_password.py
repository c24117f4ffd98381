"""The page's password: where it comes from."""

import io
import sys
from pathlib import Path

import pytest

from deft.errors import UserError
from deft.serve import password as module
from deft.serve.password import find_password


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFT_PASSWORD", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def test_the_command_line_is_warned_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFT_PASSWORD", "环境")
    assert find_password("口令", None, needed=True) == "口令"
    warning = capsys.readouterr().err
    assert "list of processes" in warning and "DEFT_PASSWORD" in warning and "口令" not in warning


def test_the_environment_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "口令.txt"
    file.write_bytes("\ufeff 春 眠 \r\n第二行\n".encode())
    assert find_password(None, file, needed=False) == " 春 眠 "
    monkeypatch.setenv("DEFT_PASSWORD", "环境")
    assert find_password(None, None, needed=False) == "环境"
    assert find_password(None, file, needed=False) == " 春 眠 ", "a file that was named goes before"
    assert capsys.readouterr().err == ""


def test_the_prompt_only_where_a_password_is_needed_and_somebody_sits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.getpass, "getpass", lambda prompt: "问来的")
    assert find_password(None, None, needed=True) is None, "a pipe cannot answer"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert find_password(None, None, needed=True) == "问来的"
    assert find_password(None, None, needed=False) is None


def test_what_is_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "空.txt"
    empty.write_text("\n口令\n", encoding="utf-8")
    with pytest.raises(UserError, match="the password is empty") as caught:
        find_password(None, empty, needed=True)
    assert caught.value.where == str(empty)
    (tmp_path / "国标.txt").write_bytes("口令".encode("gbk"))
    for wrong in (tmp_path / "没有.txt", tmp_path, tmp_path / "国标.txt"):
        with pytest.raises(UserError, match="cannot read the password file"):
            find_password(None, wrong, needed=True)
    with pytest.raises(UserError, match="given twice"):
        find_password("口令", empty, needed=True)
    with pytest.raises(UserError, match="empty"):
        find_password(" ", None, needed=True)
    monkeypatch.setenv("DEFT_PASSWORD", "长" * 1025)
    with pytest.raises(UserError, match="longer than 1024"):
        find_password(None, None, needed=True)
