"""Processes that train together leave in peace, whoever of them is gone already."""

import pytest

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
