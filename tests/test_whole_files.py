"""Files that are whole or absent, whatever happens; fingerprints that read every byte."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deft import fingerprint
from deft.errors import UserError
from deft.files import CACHE_VARIABLE, beside, check_writable, host_digits, written_whole
from deft.fingerprint import folder_fingerprint, known_sha256


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "模型"
    folder.mkdir()
    (folder / "旧").write_text("旧")
    return folder


def write_new(path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.mkdir()
        (temporary / "新").write_text("新")


def test_a_folder_takes_the_place_of_another(old: Path) -> None:
    write_new(old)
    assert contents(old.parent) == {"模型/新": "新"}


@pytest.mark.parametrize("failing", [1, 2], ids=["moving the old aside", "moving the new in"])
def test_a_rename_that_fails_loses_nothing(old: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    plain, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="cannot write"):
        write_new(old)
    assert contents(old.parent) == {"模型/旧": "旧"}


def test_files_and_folders_are_on_the_disk_before_the_rename(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    write_new(old)
    assert synced[0] == "新" and synced[1].endswith(".partial") and synced[2] == old.parent.name


def test_errors_that_are_not_about_the_place_keep_their_words(tmp_path: Path) -> None:
    for error in (
        ConnectionResetError("connection reset"),
        OSError("nothing of a disk"),
        FileNotFoundError(2, "", "别处"),
    ):
        with pytest.raises(OSError) as caught, written_whole(tmp_path / "文件"):
            raise error
        assert caught.value is error
    with pytest.raises(UserError, match="cannot write"), written_whole(tmp_path / "文件"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_temporary_name_cannot_be_foreseen(tmp_path: Path) -> None:
    assert beside(tmp_path / "文件", "partial") != beside(tmp_path / "文件", "partial")
    target = tmp_path / "别人的"
    target.write_text("别动")
    (tmp_path / f".文件.{os.getpid()}.partial").symlink_to(target)
    with written_whole(tmp_path / "文件") as temporary:
        temporary.write_text("新")
    assert target.read_text() == "别动" and (tmp_path / "文件").read_text() == "新"


def test_what_a_killed_process_left_is_cleaned_up_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    digits = "0123456789abcdef"
    killed = tmp_path / f".文件.{host_digits()}-{gone.pid}-{digits}.partial"
    alive = tmp_path / f".文件.{host_digits()}-{os.getpid()}-{digits}.partial"
    elsewhere = tmp_path / f".文件.{'0' * 8}-{gone.pid}-{digits}.partial"
    other = tmp_path / f".另一个.{host_digits()}-{gone.pid}-{digits}.partial"
    for file in (killed, alive, elsewhere, other):
        file.write_text("半")
    with written_whole(tmp_path / "文件") as temporary:
        temporary.write_text("新")
    assert [file.exists() for file in (killed, alive, elsewhere, other)] == [False, True, True, True]


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    aside = tmp_path / f".模型.{host_digits()}-{gone.pid}-0123456789abcdef.old"
    aside.mkdir()
    (aside / "旧").write_text("旧")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "模型"):
        raise RuntimeError
    assert contents(tmp_path) == {"模型/旧": "旧"}


def test_every_byte_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "缓存"))
    folder = tmp_path / "模型"
    folder.mkdir()
    content = bytearray(5 << 20)
    (folder / "weights").write_bytes(content)
    before = folder_fingerprint(folder)
    assert before.startswith("sha256:") and folder_fingerprint(folder) == before
    for name in ("README.md", "LICENSE", ".DS_Store"):
        (folder / name).write_text("关于这个模型", encoding="utf-8")
    assert folder_fingerprint(folder) == before, "notes beside the weights are no other model"
    content[len(content) // 2] = 1
    (folder / "weights").write_bytes(content)
    assert folder_fingerprint(folder) != before


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "缓存"))
    reads: list[Path] = []
    plain = fingerprint.file_sha256
    monkeypatch.setattr(fingerprint, "file_sha256", lambda path: reads.append(path) or plain(path))
    file = tmp_path / "weights"
    file.write_bytes(bytes(2 << 20))
    first = known_sha256(file)
    assert known_sha256(file) == first and len(reads) == 2, "so young a file may change within a tick of the clock"
    os.utime(file, (1, 1))
    assert {known_sha256(file) for _ in range(3)} == {first} and len(reads) == 3
    status = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"1")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_sha256(file) != first, "a change that hides its time is seen by the inode's own"


def test_a_place_that_cannot_be_written_is_told_early(tmp_path: Path) -> None:
    (tmp_path / "文件").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "文件" / "下")
