"""The page in a real browser (Chromium): what a visitor sees, and what the browser is kept from."""

import http.server
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deft.serve.assistant import Assistant
from deft.serve.server import Address, ServedPage
from deft.serve.web import TEXTS, launch_page

pytestmark = pytest.mark.slow
Script = Callable[..., list[list[int]]]
QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
POEM = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    here = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=here, args=[*QUIET, "--disable-sync"])
        yield started
        started.close()


@pytest.fixture
def served(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ServedPage]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assistant = Assistant(tiny_folder, identity_file=None, max_new_tokens=200)
    assistant.model.config.max_position_embeddings = 10_000  # replies come from a script
    assistant.context_limit_tokens, assistant.max_new_tokens = 8_000, 4_000
    page = launch_page(assistant, Address(port=0), lang="zh")
    yield page
    page.close()


@pytest.fixture
def view(browser: Any, served: ServedPage) -> Iterator[Any]:
    """The page, opened; what went wrong in it is in `view.faults`."""
    context = browser.new_context(locale="zh-CN")
    page = open_page(context, served)
    yield page
    context.close()


def open_page(context: Any, served: ServedPage) -> Any:
    page = context.new_page()
    page.faults = []
    page.on("console", lambda line: page.faults.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(served.local_url)
    page.wait_for_selector("textarea")
    return page


def say(view: Any, text: str) -> None:
    view.get_by_placeholder("输入消息").fill(text)
    view.keyboard.press("Enter")


def bubbles(view: Any) -> list[str]:
    return [each.strip() for each in view.locator(".message-content").all_inner_texts()]


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def texts_of(prompts: list[list[int]]) -> list[str]:
    return [bytes(token for token in ids if token < 256).decode(errors="replace") for ids in prompts]


def test_a_conversation(view: Any, script: Script) -> None:
    prompts = script("**花**落知多少")
    say(view, "下一句？")
    wait_for(lambda: bubbles(view) == ["下一句？", "花落知多少"])
    assert view.locator(".message-content strong").inner_text() == "花"
    view.get_by_text(TEXTS["zh"]["retry"]).click()
    wait_for(lambda: len(prompts) == 2)
    assert prompts[0] == prompts[1]
    assert view.faults == []


@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4, 0.9, 1.6])
def test_a_new_conversation_during_a_reply_is_new(view: Any, script: Script, after_s: float) -> None:
    prompts = script(POEM, delay_s=0.03)
    say(view, "旧问题")
    wait_for(lambda: len(prompts) == 1)
    time.sleep(after_s)
    view.get_by_text(TEXTS["zh"]["clear"]).click()
    wait_for(lambda: bubbles(view) == [])
    time.sleep(3.0 - after_s)  # the old reply would have ended by now
    assert bubbles(view) == []
    say(view, "新问题")
    wait_for(lambda: bubbles(view) == ["新问题", POEM])
    assert "旧问题" not in texts_of(prompts)[-1] and "新问题" in texts_of(prompts)[-1]


def test_a_new_conversation_while_waiting_for_another_visitor(
    view: Any, browser: Any, served: ServedPage, script: Script
) -> None:
    prompts = script(POEM, delay_s=0.03)
    other = open_page(browser.new_context(), served)
    say(other, "别人的问题")
    wait_for(lambda: len(prompts) == 1)
    say(view, "旧问题")
    time.sleep(0.5)
    view.get_by_text(TEXTS["zh"]["clear"]).click()
    wait_for(lambda: bubbles(other) == ["别人的问题", POEM])
    time.sleep(1.0)
    assert bubbles(view) == [] and len(prompts) == 1
    other.context.close()


def test_a_closed_tab_gets_no_more_work(view: Any, script: Script) -> None:
    steps: list[int] = []
    script(POEM * 5, delay_s=0.03, at_step=steps.append)
    say(view, "背诗")
    wait_for(lambda: len(steps) > 5)
    view.close()
    time.sleep(1.5)
    num_steps = len(steps)
    time.sleep(0.5)
    assert len(steps) == num_steps < 300


@pytest.fixture
def outside() -> Iterator[tuple[str, list[str]]]:
    """A server that is not the page's, and what it was asked for."""
    asked: list[str] = []

    class Trap(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<p>outside</p>")

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trap)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_nothing_in_a_message_loads_or_asks(view: Any, script: Script, outside: tuple[str, list[str]]) -> None:
    place, asked = outside
    named = [
        f"![图]({place}/markdown.png)",
        f"<img src={place}/img.png>",
        f"<img/src={place}/slash.png>",
        f"<IMG SRC='{place}/upper.png'>",
        f"<picture><source srcset={place}/srcset.png><img></picture>",
        f"<audio src={place}/a.mp3 autoplay controls></audio>",
        f"<video poster={place}/poster.png src={place}/v.mp4></video>",
        f"<iframe src={place}/frame></iframe><object data={place}/o></object><embed src={place}/e>",
        f"<form action={place}/form><input type=password placeholder=请输入密码><select></select></form>",
        f"<svg><image href={place}/svg.png /><use href={place}/use.svg#a /></svg>",
        f"<div style='background:url({place}/style.png);position:fixed;inset:0'>背景</div>",
        f"<style>@import '{place}/css'; body {{background: url({place}/body.png)}}</style>",
        f"<link rel=stylesheet href={place}/link.css><link rel=preload as=image href={place}/preload.png>",
        f"<meta http-equiv=refresh content='0;url={place}/refresh'><base href={place}/base/>",
        f"<script src={place}/script.js></script><img src=x onerror=\"document.title='injected'\">",
        "<a href=\"javascript:document.title='injected'\">链接</a>",
        f'```mermaid\ngraph TD; A@{{ img: "{place}/mermaid.png", label: "x" }}\n```',
        f"$$\\includegraphics{{{place}/katex.png}}$$",
    ]
    script("\n\n".join([*named, "完"]))
    say(view, "\n\n".join(named[:3]))
    wait_for(lambda: any(text.endswith("完") for text in bubbles(view)), limit_s=120)
    view.wait_for_timeout(1_000)
    for element in ("img", "audio", "video", "iframe", "object", "embed", "form", "input", "select", "image", "link"):
        found = view.locator(f".message-content > .md > {element}, .message-content .md p {element}")
        assert found.count() == 0, element
    assert asked == []
    assert "injected" not in view.title()
    assert view.get_by_text(TEXTS["zh"]["clear"]).is_enabled()
    view.get_by_text(TEXTS["zh"]["clear"]).click(timeout=5_000)  # nothing of a message lies over the page


def test_the_page_and_its_login_ask_for_nothing_from_outside(browser: Any, tiny_folder: Path) -> None:
    page = launch_page(Assistant(tiny_folder, identity_file=None, max_new_tokens=64), Address(port=0, password="口令"))
    context = browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    try:
        view = context.new_page()
        view.goto(page.local_url)
        view.locator("input").nth(0).fill("我")
        view.locator("input[type=password]").fill("口令")
        view.get_by_role("button").last.click()
        view.wait_for_selector("textarea")
        assert [url for url in asked if not url.startswith((page.local_url, "data:", "blob:"))] == []
    finally:
        context.close()
        page.close()


def test_a_foreign_site_can_neither_frame_nor_use_the_page(
    browser: Any, served: ServedPage, outside: tuple[str, list[str]], script: Script
) -> None:
    prompts = script("好")
    context = browser.new_context()
    view = context.new_page()
    view.goto(outside[0].replace("127.0.0.1", "localhost"))
    answers = view.evaluate(
        """async (page) => {
            const frame = document.createElement('iframe'); frame.src = page; document.body.append(frame);
            await new Promise(done => frame.onload = done);
            const read = await fetch(page + 'config').then(answer => answer.text(), error => 'refused');
            const form = new FormData(); form.append('files', new Blob(['x']), 'a.html');
            await fetch(page + 'gradio_api/upload', {method: 'POST', body: form, mode: 'no-cors'}).catch(() => 0);
            const call = {data: ['你好', null, 0, 0.9, 8, ''], fn_index: 0, session_hash: 'foreign'};
            const join = page + 'gradio_api/queue/join';
            await fetch(join, {method: 'POST', mode: 'no-cors', body: JSON.stringify(call)}).catch(() => 0);
            return {read};
        }""",
        served.local_url,
    )
    assert answers["read"] == "refused"
    framed = next(frame for frame in view.frames if frame != view.main_frame)
    assert framed.locator("textarea").count() == 0
    time.sleep(0.5)
    assert prompts == []
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_its_window(
    browser: Any, served: ServedPage, script: Script, width: int, scheme: str, tmp_path: Path
) -> None:
    script(POEM)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view = open_page(context, served)
    say(view, "背一首诗")
    wait_for(lambda: bubbles(view) == ["背一首诗", POEM])
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    view.screenshot(path=tmp_path / "page.png", full_page=True)
    assert view.faults == []
    context.close()
