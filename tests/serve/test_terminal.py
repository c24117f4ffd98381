"""Chat in the terminal, driven through pipes, and in a pseudo-terminal for Ctrl-C."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deft.errors import UserError
from deft.serve.assistant import Assistant
from deft.serve.terminal import TerminalChat, changed, chat_sampling, printable, run_chat

Script = Callable[..., list[list[int]]]


@pytest.fixture
def say(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Pipe lines into the chat and return what it prints."""

    def pipe(*lines: str, **sampling: Any) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        output = io.StringIO()
        run_chat(assistant, console=Console(file=output, width=40), **sampling)
        return output.getvalue()

    return pipe


@pytest.fixture
def chat(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TerminalChat, str]]:
    """Run a chat as at a terminal; a `KeyboardInterrupt` among the lines is Ctrl-C at the prompt."""

    def run(*lines: Any) -> tuple[TerminalChat, str]:
        coming: Iterator[Any] = iter(lines)

        def read(_: str = "") -> str:
            line = next(coming, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        output = io.StringIO()
        found = TerminalChat(assistant, Console(file=output, width=40), {})
        found.interactive = True
        found.run()
        assert next(coming, None) is None, "the chat ended before its lines did"
        return found, output.getvalue()

    return run


def contents(chat: TerminalChat) -> list[str]:
    return [message.content for message in chat.messages]


def test_each_piped_line_gets_one_reply(say: Callable[..., str], script: Script, assistant: Assistant) -> None:
    prompts = script("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。")
    poem = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n"
    assert say("背一首诗", "", "再来一遍", max_new_tokens=200) == poem * 2
    assert "背一首诗" in assistant.tokenizer.decode(prompts[1]), "the conversation goes on"


def test_a_reply_that_looks_like_markup_is_printed_as_it_is(say: Callable[..., str], script: Script) -> None:
    script("[bold]粗体[/bold] :smile: 123\n第二行")
    assert say("标记") == "[bold]粗体[/bold] :smile: 123\n第二行\n"


def test_control_characters_cannot_reach_the_terminal(say: Callable[..., str], script: Script) -> None:
    script("红\x1b[31m字\x07\x9b\t好")
    assert say("颜色") == "红\ufffd[31m字\ufffd\ufffd\t好\n"
    assert printable("中文，ok\n\t") == "中文，ok\n\t"


def test_reset_begins_anew(say: Callable[..., str], script: Script, assistant: Assistant) -> None:
    prompts = script("好")
    assert say("第一问", "/reset", "第二问") == "好\nnew conversation\n好\n"
    assert "第一问" not in assistant.tokenizer.decode(prompts[1])


def test_identity_is_shown_set_and_taken_away(say: Callable[..., str], script: Script, assistant: Assistant) -> None:
    prompts = script("好")
    shown = say("/identity", "你好", "/identity 你叫小德。", "你是谁？", "/identity", "/identity -", "你是谁？")
    assert shown == "(no identity)\n好\n你叫小德。\n好\n你叫小德。\n(no identity)\n好\n"
    texts = [assistant.tokenizer.decode(ids) for ids in prompts]
    assert ["小德" in text for text in texts] == [False, True, False]
    assert "你好" not in texts[1], "a new identity begins a new conversation"


def test_the_conversation_is_saved_as_one_row(
    say: Callable[..., str], script: Script, tmp_path: Path, assistant: Assistant
) -> None:
    script("花落知多少")
    file = tmp_path / "新" / "对话.jsonl"
    shown = say("/identity 你是诗人。", "下一句？", f"/save {file}", "再说", f"/save {file}")
    assert f"saved 4 messages to {file}" in shown
    [line] = file.read_text(encoding="utf-8").splitlines()
    assert "花落知多少" in line, "Chinese stays readable"
    row = json.loads(line)
    assert [message["role"] for message in row["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [message["content"] for message in row["messages"]][:3] == ["你是诗人。", "下一句？", "花落知多少"]
    assert list(file.parent.iterdir()) == [file]


def test_a_saved_row_reads_as_training_data(say: Callable[..., str], script: Script, tmp_path: Path) -> None:
    from deft.data.read import read_examples

    script("花落知多少")
    say("下一句？", f"/save {tmp_path / 'a.jsonl'}")
    [example] = read_examples([tmp_path / "a.jsonl"]).examples
    assert [message.content for message in example.messages] == ["下一句？", "花落知多少"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/save", "/save needs a file"),
        ("/save x.jsonl", "there is no conversation to save yet"),
        ("/rest", "did you mean '/reset'?"),
        ("/set temprature 1", "did you mean 'temperature'?"),
        ("/set temperature 热", "temperature must be a number"),
        ("/set temperature -1", "temperature must be a number at least 0"),
        ("/set temperature nan", "temperature must be a number at least 0"),
        ("/set top_p 0.5", "temperature 0 always takes the likeliest token"),
        ("/set max_new_tokens 9999", "max_new_tokens leaves no room"),
        ("/set seed 一", "seed must be a whole number"),
        ("问" * 200, "the last message is too long"),
    ],
)
def test_errors_are_shown_and_the_chat_goes_on(say: Callable[..., str], script: Script, line: str, error: str) -> None:
    script("好")
    shown = say(line, "你好")
    assert error in shown and shown.endswith("\n好\n")


def test_a_file_that_was_there_is_left_alone(say: Callable[..., str], script: Script, tmp_path: Path) -> None:
    script("好")
    file = tmp_path / "重要.jsonl"
    file.write_text("重要", encoding="utf-8")
    assert "already exists" in say("你好", f"/save {file}")
    assert file.read_text(encoding="utf-8") == "重要"


def test_settings_are_shown_and_set(
    say: Callable[..., str], assistant: Assistant, monkeypatch: Any, script: Any
) -> None:
    script("春眠不觉晓")
    seen: list[dict[str, Any]] = []
    stream = assistant.stream
    monkeypatch.setattr(assistant, "stream", lambda *a, **k: seen.append(k) or stream(*a, **k))
    lines = ["/set temperature 0.3", "你好", "/set temperature 0", "/set max_new_tokens 6", "/set seed 7", "你好"]
    shown = say(*lines, "/set seed -", "/set", temperature=0.7, top_p=0.9)
    assert seen == [{"temperature": 0.3, "top_p": 0.9}, {"temperature": 0.0, "max_new_tokens": 6, "seed": 7}]
    assert shown.endswith("max_new_tokens 6\ntemperature 0.0\ntop_p 1.0\ntop_k 0\nrepetition_penalty 1.0\nseed -\n")
    assert "春眠\n" in shown, "six bytes are two characters"


def test_the_defaults_are_those_of_the_page() -> None:
    assert chat_sampling() == {"temperature": 0.7, "top_p": 0.9}
    assert chat_sampling(temperature=0, seed=1) == {"temperature": 0, "seed": 1}
    assert chat_sampling(temperature=0, top_p=0.5) == {"temperature": 0, "top_p": 0.5}, "refused later, not dropped"
    assert changed({"temperature": 0}, "temperature", "1") == {"top_p": 0.9, "temperature": 1.0}
    assert changed({"temperature": 1.0, "top_p": 0.5, "top_k": 3}, "temperature", "0") == {"temperature": 0.0}
    assert changed({"temperature": 0.2, "top_p": 0.5}, "temperature", "-") == {"temperature": 0.7, "top_p": 0.5}


@pytest.mark.parametrize(
    ("flags", "sampling", "longest"),
    [
        ([], {"temperature": 0.7, "top_p": 0.9}, 256),
        (["--temperature", "0"], {"temperature": 0.0}, 256),
        (
            ["--temperature", "0.2", "--top-p", "0.5", "--max-new-tokens", "9", "--seed", "3"],
            {"temperature": 0.2, "top_p": 0.5, "seed": 3},
            9,
        ),
    ],
)
def test_the_command_takes_the_settings(
    flags: list[str], sampling: dict[str, Any], longest: int, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deft.commands.app import app

    called: list[Any] = []
    monkeypatch.setattr(
        "deft.serve.terminal.run_chat", lambda assistant, *, console, **given: called.append((assistant, given))
    )
    app(
        ["chat", str(tiny_folder), "--identity-file", os.devnull, *flags],
        exit_on_error=False,
        result_action="return_value",
    )
    [(assistant, given)] = called
    assert (given, assistant.max_new_tokens) == (sampling, longest)


def test_help_names_every_command(say: Callable[..., str]) -> None:
    shown = say("/help")
    assert all(
        command in shown for command in ("/reset", "/identity", "/set NAME VALUE", "/save FILE", "/help", "/exit")
    )


def test_exit_leaves_the_rest_unread(say: Callable[..., str], script: Script) -> None:
    script("好")
    assert say("你好", "/exit", "还在吗？") == "好\n"


def test_an_empty_reply_is_not_kept(say: Callable[..., str], script: Script, assistant: Assistant) -> None:
    prompts = script(" ")
    assert "(no reply; the message is not kept)" in say("沉默", "你好")
    assert "沉默" not in assistant.tokenizer.decode(prompts[1])


def test_wrong_settings_are_refused_before_the_first_line(say: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="temperature must be a number at least 0"):
        say("你好", temperature=-1)


def test_speed_and_an_early_end_are_shown_at_a_terminal(chat: Any, script: Script, assistant: Assistant) -> None:
    script("好的。")
    assert "9 tokens · " in chat("你好")[1] and "tokens/s" in chat("你好")[1]
    assistant.max_new_tokens = 3
    assert "cut at max_new_tokens" in chat("你好")[1]


def test_interrupting_a_reply_keeps_its_part(chat: Any, script: Script) -> None:
    def interrupt(step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    script("春眠不觉晓", at_step=interrupt)
    found, shown = chat("背一首诗", "/help")
    assert contents(found) == ["背一首诗", "春眠"]
    assert "stopped" in shown and "/reset" in shown, "the chat goes on"


def test_interrupting_the_prompt_twice_leaves(chat: Any, script: Script) -> None:
    script("好")
    _, shown = chat(KeyboardInterrupt, "你好", KeyboardInterrupt, KeyboardInterrupt)
    assert shown.count("Ctrl-C again, or Ctrl-D, to leave") == 2


@pytest.mark.slow
def test_a_real_terminal(tiny_folder: Path) -> None:
    """Chinese typed at a pseudo-terminal, Ctrl-C in a reply, Ctrl-D at the prompt."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a job of & has it off
        "from deft.model.generate import Batch; forward = Batch.forward;"
        "Batch.forward = lambda batch: (time.sleep(0.05), forward(batch).index_fill(1, BYTES, -1e9))[1];"
        "import torch; BYTES = torch.tensor([0x1B, *range(256, 260)]);"  # never stops by itself
        "from rich.console import Console; from deft.serve.assistant import Assistant;"
        "from deft.serve.terminal import run_chat;"
        "run_chat(Assistant(sys.argv[1], identity_file=None, max_new_tokens=400), console=Console())"
    )
    parent, child = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_folder)], stdin=child, stdout=child, stderr=child, start_new_session=True
    )
    os.close(child)
    seen = b""

    def read_until(mark: bytes, limit_s: float = 60.0) -> None:
        """Read the terminal up to the first of these bytes, and forget them with all before them."""
        nonlocal seen
        end = time.monotonic() + limit_s
        while mark not in seen and time.monotonic() < end:
            if select.select([parent], [], [], 0.2)[0]:
                seen += os.read(parent, 65536)
        assert mark in seen, seen.decode(errors="replace")
        seen = seen.partition(mark)[2]

    try:
        read_until(b"> ")
        os.write(parent, "你好\n".encode())
        read_until(b"\n")
        read_until("�".encode())  # the reply has begun: random bytes are no UTF-8
        process.send_signal(signal.SIGINT)
        read_until(b"stopped")
        read_until(b"> ")
        os.write(parent, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(parent)
