"""Processes that train together leave in peace, whoever of them is gone already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deft.files import CACHE_VARIABLE
from deft.training import processes


class Two:
    """Stands for the processes of a group whose other one was ended by a signal when all was saved."""

    num_processes = 2
    left = False

    def wait_for_everyone(self) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:52930")

    def destroy_process_group(self) -> None:
        self.left = True


def test_a_run_that_is_done_does_not_fail_because_another_process_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Two()
    monkeypatch.setattr(processes, "PartialState", lambda: group)
    monkeypatch.setattr(processes, "LEAVING_S", 0.0)
    with processes.joined() as joined:
        assert joined is group
    assert group.left
    with pytest.raises(RuntimeError, match="训练中"), processes.joined():
        raise RuntimeError("训练中")


ENCODING = """
import json, os, sys, time
from pathlib import Path
from rich.console import Console
from deft.errors import UserError
from deft.prompt import cache
from deft.testing.tiny import byte_tokenizer
from deft.training import processes, run
from deft.training.arguments import arguments_of
from deft.training.config import TrainConfig
from deft.prompt.formats.kinds import chat_format_for
from deft.model.start import Start
from deft.types import Example, Message

folder, numbers = Path(sys.argv[1]), {}
plain, case = cache.encode_examples, ""
run.FEWEST_ROWS = cache.FEWEST_ROWS = 3

def counted(examples, *given, **options):
    numbers[case] = numbers.get(case, 0) + 1
    if case == "broken":
        raise UserError("坏了")
    time.sleep(0.5)  # the other one would be done by now, if it did not wait
    return plain(examples, *given, **options)

cache.encode_examples = counted
tokenizer = byte_tokenizer()
start = Start(found=None, tokenizer=tokenizer, chat_format=chat_format_for(tokenizer), num_added_tokens=0)
reply = Message(role="assistant", content="答")
rows = [Example.create([Message(role="user", content=f"问 {n}"), reply]) for n in range(4)]

def ids(examples):
    found = run.encode(examples, start, TrainConfig(), split="training", console=Console(quiet=True))
    return [row.input_ids.tolist() for row in found.sequences]

with processes.joined() as state:
    arguments_of(TrainConfig(), Path("unused"))  # on CPUs they are found to be several only here
    case = "many"
    encoded = ids(rows)
    case = "few"
    assert ids(rows[:2]) == encoded[:2]
    case, told = "broken", None
    try:
        ids(rows[1:])
    except UserError as error:
        told = str(error)
    case = "nowhere to keep"
    os.environ["DEFT_CACHE_DIR"] = ""
    assert ids(rows) == encoded
    (folder / f"{state.process_index}.json").write_text(json.dumps([numbers, told, encoded]))
"""


@pytest.mark.slow
def test_the_second_process_reads_what_the_first_encoded(tmp_path: Path) -> None:
    script = tmp_path / "编码.py"
    script.write_text(ENCODING, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", CACHE_VARIABLE: str(tmp_path / "kept")}
    command = [*launcher, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1))
    assert first[0] == {"many": 1, "few": 1, "broken": 1, "nowhere to keep": 1}
    assert second[0] == {"few": 1, "nowhere to keep": 1}
    assert "坏了" in first[1] and first[1] == second[1], "what is wrong is told by both"
    assert len(first[2]) == 4 and first[2] == second[2]
