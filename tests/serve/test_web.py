"""The chat page: built, served on loopback, and used by a real client."""

import runpy
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio_client import Client

from deft.errors import UserError
from deft.serve import web
from deft.serve.assistant import Assistant
from deft.serve.server import Address, ServedPage, is_loopback
from deft.serve.web import TEXTS, build_page, launch_page

Script = Callable[..., list[list[int]]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(assistant: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedPage]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    served = launch_page(assistant, Address(port=0), lang="zh")
    yield served
    served.close()


@pytest.fixture
def client(page: ServedPage) -> Client:
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


def test_a_cleared_reply_writes_nothing_afterwards(client: Client, script: Script) -> None:
    script("一")
    send(client, "旧问题一").result(timeout=60)
    steps: list[int] = []
    prompts = script("春眠不觉晓，处处闻啼鸟。", delay_s=0.05, at_step=steps.append)
    for num_steps in (1, 5, 12):  # at the first token, and later
        steps.clear()
        job = send(client, "旧问题二")
        while len(steps) < num_steps:
            time.sleep(0.005)
        assert said(client.predict(api_name="/clear")[1]) == []
        assert said(job.result(timeout=60)[1]) == []
        assert said(send(client, "新问题", max_new_tokens=3).result(timeout=60)[1])[0] == ("user", "新问题")
        assert "旧问题" not in bytes(token for token in prompts[-1] if token < 256).decode()
        client.predict(api_name="/clear")


def test_a_clear_at_the_very_end_wins(assistant: Assistant, script: Script) -> None:
    """A clear between the reply's last piece and its keeping: nothing is kept, nothing shown."""
    script("春眠")
    session = web.ChatSession(assistant, lang="zh")
    request: Any = SimpleNamespace(session_hash="甲")
    conversation = [{"role": "user", "content": "旧"}, {"role": "assistant", "content": "答"}]
    reply = session.send("旧问题", conversation, 0.0, 1.0, 64, "", request)
    assert next(reply)[1][-1] == {"role": "user", "content": "旧问题"}
    assert next(reply)[1][-1]["content"] == "春"
    assert next(reply)[1][-1]["content"] == "春眠"
    session.clear(conversation, request)
    [(box, shown, *_)] = reply
    assert shown == [] and "value" not in box, "what is being typed stays"
    assert conversation == [] and session.cancels == {}


def test_stop_stops_the_identitys_reply_too(role_token_folder: Path, script: Script) -> None:
    """Without a system role the identity is a message that the model answers first."""
    served = launch_page(
        Assistant(role_token_folder, identity_file=None, max_new_tokens=64), Address(port=0), lang="zh"
    )
    try:
        steps: list[int] = []
        script("春眠不觉晓，处处闻啼鸟。", delay_s=0.05, at_step=steps.append)
        client = Client(served.local_url, verbose=False)
        job = send(client, "你是谁？", identity="你叫小德。")
        while len(steps) < 5:
            time.sleep(0.005)
        client.predict(api_name="/stop")
        final = job.result(timeout=60)
        assert (box_text(final[0]), said(final[1]), final[-1]) == ("你是谁？", [], TEXTS["zh"]["stop"])
        num_steps = len(steps)
        assert num_steps < 20
        time.sleep(0.3)
        assert len(steps) == num_steps
        script("好")
        assert said(send(client, "你是谁？", identity="你叫小德。").result(timeout=60)[1])[-1] == ("assistant", "好")
    finally:
        served.close()


def test_the_identity_belongs_to_the_session(client: Client, script: Script, assistant: Assistant) -> None:
    prompts = script("好")
    send(client, "你是谁？", identity="你叫小德。").result(timeout=60)
    send(client, "你是谁？").result(timeout=60)
    texts = [assistant.tokenizer.decode(ids) for ids in prompts]
    assert ["小德" in text for text in texts] == [True, False]
    assert assistant.identity == ""


def test_two_sessions_have_two_conversations(page: ServedPage, client: Client, script: Script) -> None:
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
    client: Client, page: ServedPage, script: Script, tmp_path: Path
) -> None:
    script("好")
    send(client, "我的秘密").result(timeout=60)
    written = [file for file in tmp_path.rglob("*") if file.is_file() and "秘密".encode() in file.read_bytes()]
    assert written == []
    assert not page.page.run_history
    assert not page.page.analytics_enabled


def test_the_page_needs_nothing_from_outside(page: ServedPage) -> None:
    with urllib.request.urlopen(page.local_url + "theme.css") as answer:
        theme = answer.read().decode()
    assert "fonts.googleapis" not in theme and "system-ui" in theme


def test_a_password_keeps_others_out(assistant: Assistant) -> None:
    served = launch_page(assistant, Address(port=0, password="口令"))
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
        Address(host=host, share=share).check()
    assert error.value.got == fault
    with pytest.raises(UserError, match="the password is empty"):
        Address(host=host, share=share, password="").check()
    Address(host=host, share=share, password="口令").check()


def test_a_page_behind_a_proxy_needs_one_too() -> None:
    for address in (Address(server_names=("chat.example.org",)), Address(trusted_proxies=("127.0.0.1",))):
        with pytest.raises(UserError, match="so it needs a password") as error:
            address.check()
        assert error.value.got == "behind a proxy"


def test_loopback_addresses() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "192.168.1.2", "example.org", "")] == [False] * 4


def test_a_taken_port_is_named(assistant: Assistant) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1:{port}"):
            launch_page(assistant, Address(port=port))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_speaks_both_languages(assistant: Assistant, lang: str) -> None:
    shown = str(build_page(assistant, lang=lang).config["components"])
    assert all(TEXTS[lang][name] in shown for name in ("temperature", "identity", "retry", "clear", "placeholder"))
    assert TEXTS["zh" if lang == "en" else "en"]["identity_info"] not in shown


def test_languages_have_the_same_texts_and_no_others_are_known(assistant: Assistant) -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    with pytest.raises(UserError, match="not available in this language"):
        build_page(assistant, lang="fr")


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["chat_gradio.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "chat_gradio.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_command_serves_the_model_it_is_given(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        web, "serve_page", lambda assistant, address, **options: served.append((assistant.name, address, options))
    )
    arguments = ["--model_name_or_path", str(tiny_folder), "--port", "7999", "--lang", "zh"]
    assert run_command(monkeypatch, *arguments) == 0
    assert served == [("小模型", Address(port=7999), {"lang": "zh"})]


def test_the_command_takes_a_password_and_a_place_behind_a_proxy(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(web, "serve_page", lambda assistant, address, **options: served.append(address))
    (tmp_path / "口令.txt").write_text("口令\n", encoding="utf-8")
    names = ["--server_name", "chat.example.org", "--server-name", "另.example", "--trusted-proxy", "10.0.0.1"]
    arguments = ["--model_name_or_path", str(tiny_folder), "--host", "0.0.0.0", *names]
    assert run_command(monkeypatch, *arguments, "--password-file", str(tmp_path / "口令.txt")) == 0
    monkeypatch.setenv("DEFT_PASSWORD", "环境")
    assert run_command(monkeypatch, "--model_name_or_path", str(tiny_folder)) == 0
    assert served == [
        Address(
            host="0.0.0.0",
            password="口令",
            server_names=("chat.example.org", "另.example"),
            trusted_proxies=("10.0.0.1",),
        ),
        Address(password="环境"),
    ]


def test_the_command_fetches_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh clone there is no `models/smollm2-135m`, which the command names by default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFT_MODELS_DIR", raising=False)
    monkeypatch.setattr(web, "serve_page", lambda *_, **__: pytest.fail("there is a model"))
    fetched: list[str] = []
    monkeypatch.setattr("deft.hub.pull.pull", lambda alias, **_: fetched.append(alias))
    assert run_command(monkeypatch) == 2, "the stand-in brought no model"
    assert fetched == ["smollm2-135m"]


def test_a_public_link_is_a_name_of_the_page(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    link = "http://abc123.gradio.live"
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **options: asked.append(options) or link)
    served = launch_page(assistant, Address(port=0, share=True, password="口令"))
    try:
        assert served.share_url == "https://abc123.gradio.live"
        assert (asked[0]["local_host"], asked[0]["local_port"]) == ("127.0.0.1", served.gate.port)
        request = urllib.request.Request(served.local_url, headers={"Host": "abc123.gradio.live"})
        page = urllib.request.urlopen(request).read().decode()
        assert "amazonaws" not in page, "the page comes from here, not from Gradio's store"
    finally:
        served.close()

    def fail(**_: Any) -> str:
        raise RuntimeError("没有网络")

    monkeypatch.setattr("gradio.networking.setup_tunnel", fail)
    with pytest.raises(UserError, match="Gradio gave no public link") as caught:
        launch_page(assistant, Address(port=0, share=True, password="口令"))
    assert "没有网络" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "127.0.0.1", "--trusted_proxy", "代理"], "a trusted proxy is given by its address"),
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
