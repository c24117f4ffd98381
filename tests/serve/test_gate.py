"""Requests to the page over a real socket, as a browser on a foreign site, a proxy or a script would send them."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from deft.serve import gate as gate_module
from deft.serve.assistant import Assistant
from deft.serve.gate import LISTENER_GRACE_S, Gate, Logins, Refused, place_of
from deft.serve.server import MAX_WAITING, Address, ServedPage
from deft.serve.web import launch_page

Script = Callable[..., list[list[int]]]
SECRET = "你叫小德，机密代号是青花瓷。"


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def page(tiny_folder: Path, folder: Path) -> Iterator[ServedPage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        assistant = Assistant(tiny_folder, identity_file=None, max_new_tokens=64)
        served = launch_page(assistant, Address(port=0), lang="zh")
        served.gate.names.add("chat.example.org")  # as an address that needs a password would have it
        served.gate.trusted_proxies.add("127.0.0.9")
        yield served
        served.close()


@pytest.fixture(scope="module")
def locked(tiny_folder: Path, folder: Path) -> Iterator[ServedPage]:
    """A page behind a password, whose model has an identity."""
    assistant = Assistant(tiny_folder, identity_file=None, max_new_tokens=64)
    assistant.set_model_identity(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_module, "WRONG_LOGIN_DELAY_S", 0.2)
        served = launch_page(assistant, Address(port=0, password="口令"))
        yield served
        served.close()


def ask(
    page: ServedPage,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    source: str = "127.0.0.1",
    raw: bytes | None = None,
    **headers: str,
) -> SimpleNamespace:
    """Send one request; `host_` and the like are headers, `body` is sent as JSON, `raw` as it is."""
    port = page.gate.port
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))) as connection:
        sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
        connection.putrequest(method or ("GET" if sent is None else "POST"), path, skip_host=True)
        wanted = {
            "host": f"127.0.0.1:{port}",
            **{name.strip("_").replace("_", "-"): each for name, each in headers.items()},
        }
        if sent is not None:
            wanted = {"content-type": "application/json", "content-length": str(len(sent)), **wanted}
        for name, value in wanted.items():
            connection.putheader(name, value)
        connection.endheaders(sent)
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        return SimpleNamespace(status=answer.status, text=text, headers=answer.headers)


def call(data: list[Any], *, function: int = 0, session: str = "s1", **more: Any) -> dict[str, Any]:
    return {"data": data, "fn_index": function, "session_hash": session, **more}


def message(text: str, *, identity: str = "", temperature: float = 0.0, max_new_tokens: int = 8) -> list[Any]:
    return [text, None, temperature, 0.9, max_new_tokens, identity]


JOIN = "/gradio_api/queue/join"

# --- who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST", "chat.example.org", "127.0.0.1:8000"])
def test_the_page_is_served_under_its_own_names(page: ServedPage, host: str) -> None:
    assert ask(page, "/", host_=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "10.0.0.7", "", "a@localhost"]
)
def test_a_name_pointed_at_this_machine_gets_nothing(page: ServedPage, host: str) -> None:
    """DNS rebinding: the browser takes evil.example for the page's own origin."""
    for path, body in (("/", None), ("/config", None), (JOIN, call(message("你好")))):
        answer = ask(page, path, body, host_=host, origin_=f"http://{host}")
        assert answer.status in {400, 421} and "deft" not in answer.text.replace("--server_name", "")
        assert "access-control-allow-origin" not in answer.headers


def test_where_the_server_listens_on_all_addresses_each_address_will_do() -> None:
    options: dict[str, Any] = {"port": 7860, "clean_call": None, "max_call_bytes": 1, "on_gone": None}
    everywhere, here = Gate(None, host="0.0.0.0", **options), Gate(None, host="192.168.1.5", **options)  # type: ignore[arg-type]
    names = ["192.168.1.5", "10.0.0.1", "fe80::1", "localhost", "evil.example"]
    assert [everywhere.is_served(name) for name in names] == [True, True, True, True, False]
    assert [here.is_served(name) for name in names] == [True, False, False, True, False]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://chat.example.org:1", "file://"]
)
def test_a_page_of_another_site_may_not_ask(page: ServedPage, origin: str) -> None:
    answer = ask(page, JOIN, call(message("你好")), origin_=origin)
    assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
    asked_first = ask(page, JOIN, method="OPTIONS", origin_=origin, access_control_request_method="POST")
    assert asked_first.status in {403, 405} and "access-control-allow-origin" not in asked_first.headers


def test_the_page_itself_may_ask(page: ServedPage) -> None:
    own = f"127.0.0.1:{page.gate.port}"
    stop = call([], function=2)
    assert ask(page, "/gradio_api/run/stop", stop, origin_=f"http://{own}", sec_fetch_site="same-origin").status == 200
    behind_proxy = {"host_": "chat.example.org", "origin_": "https://chat.example.org"}
    assert ask(page, "/gradio_api/run/stop", stop, **behind_proxy).status == 200
    assert ask(page, "/gradio_api/run/stop", stop, origin_="https://chat.example.org").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_only_a_link_leads_here_from_elsewhere(page: ServedPage, site: str) -> None:
    visit = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(page, "/", **visit).status == 200
    assert ask(page, "/", **{**visit, "sec_fetch_dest": "iframe"}).status == 403
    assert ask(page, "/logout", **visit).status == 403, "a foreign page could log a visitor out"
    assert ask(page, "/config", sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="script").status == 403


def test_only_a_trusted_proxy_says_who_asked(page: ServedPage) -> None:
    claims = {"x_forwarded_host": "evil.example", "x_forwarded_proto": "https", "forwarded": "host=evil.example"}
    answer = ask(page, "/config", **claims, x_gradio_server="http://evil.example", x_real_ip="1.2.3.4")
    assert answer.status == 200 and "evil.example" not in answer.text
    assert json.loads(answer.text)["root"] == f"http://127.0.0.1:{page.gate.port}"
    assert ask(page, "/config", **claims, source="127.0.0.9").status == 421, "a proxy passes on what a browser asked"
    claims["x_forwarded_host"] = "chat.example.org"
    answer = ask(page, "/config", **claims, source="127.0.0.9", origin_="https://chat.example.org")
    assert json.loads(answer.text)["root"] == "https://chat.example.org"


def test_the_address_is_what_a_trusted_proxy_saw_last() -> None:
    options: dict[str, Any] = {"port": 7860, "clean_call": None, "max_call_bytes": 1, "on_gone": None}
    gate = Gate(None, host="::1", trusted_proxies=["10.0.0.1"], **options)  # type: ignore[arg-type]
    scope = {"headers": [(b"X-Forwarded-For", b"6.6.6.6, 1.2.3.4"), (b"host", b"localhost")], "client": ("10.0.0.1", 5)}
    assert gate.believed(scope)["client"] == ("1.2.3.4", 0)
    assert gate.believed({**scope, "client": ("10.0.0.2", 5)})["client"] == ("10.0.0.2", 5)
    assert gate.believed(scope)["headers"] == [(b"host", b"localhost")]


def test_hosts_and_origins_are_read_alike() -> None:
    assert place_of("//Localhost:80") == place_of("http://localhost") == ("localhost", None)
    assert place_of("//[::1]:7860") == place_of("http://[::1]:7860") == ("::1", 7860)
    for wrong in ("null", "//", "//a:b", "//a@b", "ftp://a", "http://a/b", "//a:99999", "http://[::1", "中文"):
        assert place_of(wrong) is None, wrong


# --- what is asked --------------------------------------------------------------------------------------------------


def files_below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_uploads_are_closed(page: ServedPage, folder: Path) -> None:
    form = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.html"\r\n\r\n' + b"x" * 99 + b"\r\n--x--\r\n"
    )
    for path in ("/gradio_api/upload", "/upload", "/gradio_api/upload?upload_id=1", "/gradio_api/component_server"):
        answer = ask(page, path, raw=form, content_type="multipart/form-data; boundary=x")
        assert answer.status == 404, path
    assert files_below(folder) == []


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/call/send",
        "/gradio_api/openapi.json",
        "/static/../../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/%2e%2e/%2e%2e/index.html",
        "/static//etc/passwd",
        "/svelte/index.js",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link",
        "/gradio_api/mcp/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/custom_component/0/client/component/a.js",
        "/中文",
    ],
)
def test_what_the_page_does_not_have_is_closed(page: ServedPage, path: str) -> None:
    from urllib.parse import quote

    answer = ask(page, quote(path, safe="/%=:?"))
    assert answer.status in {403, 404} and "root:" not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_are_refused(page: ServedPage, method: str) -> None:
    assert ask(page, "/", method=method).status == 405


def test_a_body_has_its_limit(page: ServedPage) -> None:
    limit = page.gate.max_call_bytes
    assert limit < 1_000_000
    assert ask(page, JOIN, raw=b"", content_length=str(10**12)).status == 413
    assert ask(page, JOIN, raw=b"", content_length="-1").status in {400, 413}
    chunk = b"%x\r\n%s\r\n" % (limit + 1, b" " * (limit + 1))
    port = page.gate.port
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.putrequest("POST", JOIN)
        connection.putheader("transfer-encoding", "chunked")
        connection.endheaders(chunk)
        assert connection.getresponse().status == 413
    assert ask(page, "/login", raw=b"username=a&password=" + b"x" * 20_000).status == 413


def test_malformed_calls_are_refused_without_a_traceback(page: ServedPage, capfd: pytest.CaptureFixture[str]) -> None:
    good = message("你好")
    longest = page.gate.max_call_bytes
    wrong: list[tuple[bytes | Any, int]] = [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 20_000, 400),
        ([], 400),
        ("中文", 400),
        ({}, 400),
        (call(good, session="../x"), 400),
        ({**call(good), "session_hash": None}, 400),
        ({**call(good), "data": None}, 400),
        (call(good, function=99), 404),
        (call(good, function=-1), 404),
        (call(good, function="0"), 404),  # type: ignore[arg-type]
        (call(good, function=True), 404),
        (call(good[:-1]), 422),
        (call([*good, 1]), 422),
        (call([None, *good[1:]]), 422),
        (call([{"text": "你好"}, *good[1:]]), 422),
        (call(["\ud800", *good[1:]]), 422),
        (call(message("你好", temperature=3)), 422),
        (call(message("你好", temperature=float("nan"))), 422),
        (call(message("你好", temperature=float("inf"))), 422),
        (call(message("你好", temperature="热")), 422),  # type: ignore[arg-type]
        (call(message("你好", temperature=True)), 422),
        (call(message("你好", max_new_tokens=10**9)), 422),
        (call(message("你好", max_new_tokens=0)), 422),
        (call(message("长" * 5_000)), 413),
        (call(message("你好", identity="长" * 5_000)), 413),
        (b'{"data": "' + b"x" * longest + b'"}', 413),
    ]
    for body, status in wrong:
        for path in (JOIN, "/gradio_api/run/send"):
            answer = ask(page, path, raw=body) if isinstance(body, bytes) else ask(page, path, body)
            assert answer.status == status, (body if len(str(body)) < 200 else str(body)[:200], answer.text)
            assert json.loads(answer.text)["detail"]
    assert ask(page, "/gradio_api/run/predict", {"data": [], "session_hash": "s1"}).status == 404
    assert ask(page, "/gradio_api/cancel", []).status == 422
    assert ask(page, "/gradio_api/cancel", {"session_hash": "x", "fn_index": 0, "event_id": "无"}).status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_an_answer_tells_the_browser_what_it_may_not(page: ServedPage) -> None:
    for path in ("/", "/theme.css", "/nothing", "/gradio_api/info"):
        headers = ask(page, path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "http" not in policy.replace("https://", ""), "nothing from outside"
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer" and headers["x-dns-prefetch-control"] == "off"


def test_a_web_socket_is_closed() -> None:
    import asyncio

    options: dict[str, Any] = {"port": 7860, "clean_call": None, "max_call_bytes": 1, "on_gone": None}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    gate = Gate(None, host="127.0.0.1", **options)  # type: ignore[arg-type]
    asyncio.run(gate({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- the password ---------------------------------------------------------------------------------------------------


def test_nobody_gets_the_identity_before_the_password(locked: ServedPage) -> None:
    hidden = (SECRET, json.dumps(SECRET).strip('"'), "青花瓷", "\\u9752")
    for path in (
        "/",
        "/?all_endpoints=1",
        "/?all_endpoints=True&page=",
        "/gradio_api/info",
        "/config",
        "/gradio_api/app_id",
    ):
        answer = ask(locked, path)
        assert answer.status in {200, 401}
        assert not any(each in answer.text for each in hidden), path
    load = next(index for index, each in locked.page.fns.items() if ("load" in [target[1] for target in each.targets]))
    assert ask(locked, "/gradio_api/run/predict", call([], function=load)).status == 401


def log_in(page: ServedPage, password: str) -> SimpleNamespace:
    form = urlencode({"username": "我", "password": password}).encode()
    return ask(page, "/login", raw=form, content_type="application/x-www-form-urlencoded")


def test_the_identity_comes_with_the_password(locked: ServedPage) -> None:
    answer = log_in(locked, "口令")
    assert answer.status == 200
    cookie = answer.headers.get_all("set-cookie")[-1].partition(";")[0]
    load = next(index for index, each in locked.page.fns.items() if ("load" in [target[1] for target in each.targets]))
    shown = ask(locked, "/gradio_api/run/predict", call([], function=load), cookie=cookie)
    assert json.loads(shown.text)["data"] == [SECRET]


def test_wrong_logins_are_slow_and_few(locked: ServedPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "WRONG_LOGINS_PER_ADDRESS", 3)
    monkeypatch.setattr(locked.gate, "logins", Logins())
    start = time.monotonic()
    assert [log_in(locked, "错").status for _ in range(3)] == [400] * 3
    assert time.monotonic() - start > 0.6
    refused = log_in(locked, "口令")
    assert refused.status == 429 and 250 < int(refused.headers["retry-after"]) <= 300
    locked.gate.logins.tries.clear()
    assert log_in(locked, "口令").status == 200


def test_wrong_logins_are_counted_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gate_module, "WRONG_LOGINS_PER_ADDRESS", 2)
    monkeypatch.setattr(gate_module, "WRONG_LOGINS_IN_ALL", 5)
    logins = Logins()
    for address in ("甲", "甲", "乙", "乙"):
        logins.begin(address)
    with pytest.raises(Refused, match="too many"):
        logins.begin("甲")
    logins.begin("丙")
    with pytest.raises(Refused):
        logins.begin("丁")
    logins.take_back("甲")
    logins.begin("丁")
    clock[0] += 301
    logins.begin("乙")
    assert [address for _, address in logins.tries] == ["乙"]


# --- the queue ------------------------------------------------------------------------------------------------------


def test_what_nobody_listens_for_is_not_computed(page: ServedPage, script: Script) -> None:
    prompts = script("好")
    statuses = [ask(page, JOIN, call(message("刷屏"), session=f"flood{each}")).status for each in range(60)]
    assert statuses.count(200) <= MAX_WAITING + 5 and set(statuses) <= {200, 503}, "the queue has its size"
    start = time.monotonic()
    while ask(page, JOIN, call(message("你好"), session="visitor")).status != 200:
        assert time.monotonic() - start < 10
        time.sleep(0.1)
    assert "好" in listen(page, "visitor")
    assert time.monotonic() - start < LISTENER_GRACE_S + 10
    assert len(prompts) == 1


def listen(page: ServedPage, session: str) -> str:
    """Listen for a session's reply to its end, and return its last message."""
    with closing(http.client.HTTPConnection("127.0.0.1", page.gate.port, timeout=30)) as connection:
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        answer = connection.getresponse()
        events = [json.loads(line[6:]) for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    finals = [event for event in events if event["msg"] == "process_completed"]
    return str(finals[-1]["output"]["data"])


def test_a_visitor_who_left_gets_no_more_work(page: ServedPage, script: Script) -> None:
    steps: list[int] = []
    script("春眠不觉晓，处处闻啼鸟。" * 2, delay_s=0.05, at_step=steps.append)
    assert ask(page, JOIN, call(message("背诗", max_new_tokens=60), session="gone")).status == 200
    connection = http.client.HTTPConnection("127.0.0.1", page.gate.port, timeout=30)
    connection.request("GET", "/gradio_api/queue/data?session_hash=gone")
    answer = connection.getresponse()
    while len(steps) < 5:
        answer.read(1)
    assert answer.fp is not None
    answer.close()
    connection.close()
    time.sleep(1.0)
    seen = len(steps)
    time.sleep(0.5)
    assert len(steps) == seen < 60
