"""The chat page: built, served on loopback, and used by a real client."""

import runpy
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client

from deft.errors import UserError
from deft.serve import web
from deft.serve.assistant import Assistant
from deft.serve.web import TEXTS, build_page, check_reachable, is_loopback, launch_page

Script = Callable[..., list[list[int]]]
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def page(assistant: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[gr.Blocks]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    served = launch_page(assistant, port=free_port(), lang="zh")
    yield served
    served.close()


@pytest.fixture
def client(page: gr.Blocks) -> Client:
    return Client(page.local_url, verbose=False)


def send(client: Client, text: str, *, temperature: float = 0.0, max_new_tokens: int = 64, identity: str = "") -> Any:
    """Start sending a message; the job's outputs are (box, chat, retry button, status)."""
    return client.submit(text, temperature, 0.9, max_new_tokens, identity, api_name="/send")


def said(shown: Any) -> list[tuple[str, str]]:
    """The roles and texts of a chat as the page shows it."""
    return [(each["role"], "".join(part["text"] for part in each["content"])) for each in shown]


def test_a_message_is_answered_piece_by_piece_over_http(client: Client, script: Script) -> None:
    prompts = script("花落知多少")
    job = send(client, "下一句？")
    final = job.result(timeout=60)
    assert said(final[1]) == [("user", "下一句？"), ("assistant", "花落知多少")]
    texts = [said(output[1])[-1][1] for output in job.outputs()]
    assert texts[:3] == ["下一句？", "花", "花落"]
    assert said(send(client, "再说").result(timeout=60)[1])[:2] == said(final[1]), "the conversation goes on"
    assert bytes(token for token in prompts[1] if token < 256).decode().count("花落知多少") == 1


def test_stop_stops_the_model_and_keeps_the_part(client: Client, script: Script) -> None:
    steps: list[int] = []
    script("春眠不觉晓，处处闻啼鸟。" * 3, delay_s=0.1, at_step=steps.append)
    job = send(client, "背一首诗", max_new_tokens=200)
    while len(job.outputs()) < 3:
        time.sleep(0.02)
    client.predict(api_name="/stop")
    final = job.result(timeout=60)
    num_steps = len(steps)
    assert num_steps < 60
    answer = said(final[1])[-1][1]
    assert answer.startswith("春眠") and len(answer) < 36
    assert final[-1] == TEXTS["zh"]["stop"]
    time.sleep(0.5)
    assert len(steps) == num_steps, "the model does not run on"


def test_clear_and_retry(client: Client, script: Script) -> None:
    script("一")
    send(client, "问").result(timeout=60)
    script("二")
    final = client.predict(0.0, 0.9, 64, "", api_name="/retry")
    assert said(final[1]) == [("user", "问"), ("assistant", "二")]
    assert said(client.predict(api_name="/clear")[1]) == []
    assert said(send(client, "新问").result(timeout=60)[1]) == [("user", "新问"), ("assistant", "二")]
    client.predict(api_name="/clear")
    assert said(client.predict(0.0, 0.9, 64, "", api_name="/retry")[1]) == []


def test_the_identity_belongs_to_the_session(client: Client, script: Script, assistant: Assistant) -> None:
    prompts = script("好")
    send(client, "你是谁？", identity="你叫小德。").result(timeout=60)
    send(client, "你是谁？").result(timeout=60)
    texts = [assistant.tokenizer.decode(ids) for ids in prompts]
    assert ["小德" in text for text in texts] == [True, False]
    assert assistant.identity == ""


def test_two_sessions_have_two_conversations(page: gr.Blocks, client: Client, script: Script) -> None:
    script("好")
    send(client, "我的秘密").result(timeout=60)
    other = Client(page.local_url, verbose=False)
    assert said(send(other, "你好").result(timeout=60)[1]) == [("user", "你好"), ("assistant", "好")]


def test_what_cannot_be_answered_stays_in_the_box(client: Client, script: Script) -> None:
    script(" ")
    final = send(client, "沉默").result(timeout=60)
    assert (box_text(final[0]), said(final[1]), final[-1]) == ("沉默", [], TEXTS["zh"]["empty"])
    final = send(client, "长" * 300).result(timeout=60)
    assert (box_text(final[0]), said(final[1])) == ("长" * 300, [])
    assert said(send(client, "  ").result(timeout=60)[1]) == []


def box_text(update: Any) -> str:
    return update["value"] if isinstance(update, dict) else update


def test_a_reply_cut_at_its_longest_says_so(client: Client, script: Script) -> None:
    script("花落知多少")
    final = send(client, "下一句？", max_new_tokens=6).result(timeout=60)
    assert (said(final[1])[-1][1], final[-1]) == ("花落", TEXTS["zh"]["length"])


def test_sampling_reaches_the_model(client: Client, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    stream = assistant.stream
    monkeypatch.setattr(assistant, "stream", lambda *a, **k: seen.append(k) or stream(*a, **k))
    send(client, "你好", temperature=0.5, max_new_tokens=2).result(timeout=60)
    send(client, "你好", temperature=0.0, max_new_tokens=2).result(timeout=60)
    chosen = [(each["temperature"], each["top_p"], each["max_new_tokens"]) for each in seen]
    assert chosen == [(0.5, 0.9, 2), (0.0, 1.0, 2)], "greedy choice has no top-p"


def test_nothing_is_written_and_nothing_is_recorded(
    client: Client, page: gr.Blocks, script: Script, tmp_path: Path
) -> None:
    script("好")
    send(client, "我的秘密").result(timeout=60)
    written = [file for file in tmp_path.rglob("*") if file.is_file() and "秘密".encode() in file.read_bytes()]
    assert written == []
    assert not page.run_history
    assert not page.analytics_enabled


def test_the_page_needs_nothing_from_outside(page: gr.Blocks) -> None:
    with urllib.request.urlopen(page.local_url + "theme.css") as answer:
        theme = answer.read().decode()
    assert "fonts.googleapis" not in theme and "system-ui" in theme


def test_a_password_keeps_others_out(assistant: Assistant) -> None:
    served = launch_page(assistant, port=free_port(), password="口令")
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(served.local_url + "config")
        with pytest.raises(Exception, match=r"(?i)login|credentials|auth"):
            Client(served.local_url, auth=("me", "错"), verbose=False)
        assert (
            Client(served.local_url, auth=("me", "口令"), verbose=False).config["title"] == f"deft · {assistant.name}"
        )
    finally:
        served.close()


@pytest.mark.parametrize(
    ("host", "share", "fault"),
    [("0.0.0.0", False, "host 0.0.0.0"), ("::", False, "host ::"), ("127.0.0.1", True, "share")],
)
def test_a_page_that_others_can_reach_needs_a_password(host: str, share: bool, fault: str) -> None:
    with pytest.raises(UserError, match="others could reach this page, so it needs a password") as error:
        check_reachable(host, share=share, password=None)
    assert error.value.got == fault
    with pytest.raises(UserError, match="the password is empty"):
        check_reachable(host, share=share, password="")
    check_reachable(host, share=share, password="口令")


def test_loopback_addresses() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.1.2", "example.org", "")] == [False] * 4


def test_a_taken_port_is_named(assistant: Assistant) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1:{port}"):
            launch_page(assistant, port=port)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_speaks_both_languages(assistant: Assistant, lang: str) -> None:
    shown = str(build_page(assistant, lang=lang).config["components"])
    assert all(TEXTS[lang][name] in shown for name in ("temperature", "identity", "retry", "clear", "placeholder"))
    assert TEXTS["zh" if lang == "en" else "en"]["identity_info"] not in shown


def test_languages_have_the_same_texts_and_no_others_are_known(assistant: Assistant) -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    with pytest.raises(UserError, match="does not speak this language"):
        build_page(assistant, lang="fr")


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["chat_gradio.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "chat_gradio.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_command_serves_the_model_it_is_given(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr(web, "serve_page", lambda assistant, **options: served.append((assistant.name, options)))
    arguments = ["--model_name_or_path", str(tiny_folder), "--port", "7999", "--lang", "zh"]
    assert run_command(monkeypatch, *arguments) == 0
    options = {"host": "127.0.0.1", "port": 7999, "share": False, "password": None, "lang": "zh"}
    assert served == [("小模型", options)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "others could reach this page, so it needs a password"),
        (["--share"], "others could reach this page, so it needs a password"),
        (["--model_name_or_path", "没有/这个/模型"], "there is no such model"),
    ],
)
def test_the_command_explains_what_is_wrong(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
