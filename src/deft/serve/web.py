"""Chat in the browser: one Gradio page over an `Assistant`.

Conversations live in the session's memory and nowhere else: nothing is logged, Gradio's run history and analytics are
off, and the page needs nothing from outside. Each session has its own conversation and identity.
"""

import hmac
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from deft.errors import UserError, did_you_mean
from deft.serve.assistant import Assistant
from deft.serve.defaults import TEMPERATURE, TOP_P
from deft.serve.server import Address, ServedPage, serve
from deft.serve.thoughts import CLOSE, OPEN
from deft.types import Message

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "placeholder": "Ask something. The conversation is stored nowhere.",
        "message": "Message… (Enter sends, Shift+Enter begins a new line)",
        "retry": "↻ Retry",
        "clear": "✕ New conversation",
        "temperature": "Temperature",
        "temperature_info": "0 = always the likeliest word",
        "top_p": "Top-p",
        "top_p_info": "has effect with a temperature above 0",
        "max_new_tokens": "Longest reply (tokens)",
        "identity": "Identity",
        "identity_placeholder": "You are a patient teacher of mathematics.",
        "identity_info": "who the model is; counts from the next message on",
        "stop": "stopped",
        "length": "cut at the longest reply",
        "empty": "the model gave an empty reply",
        "login": "Any user name will do; the password is the one the server was started with.",
    },
    "zh": {
        "placeholder": "请输入问题。对话不会保存到任何地方。",
        "message": "输入消息……（Enter 发送，Shift+Enter 换行）",
        "retry": "↻ 重新回答",
        "clear": "✕ 新对话",
        "temperature": "温度",
        "temperature_info": "0 = 总是选择最可能的词",
        "top_p": "Top-p",
        "top_p_info": "温度大于 0 时有效",
        "max_new_tokens": "回答的最大长度（词元）",
        "identity": "身份设定",
        "identity_placeholder": "你是一位耐心的数学老师。",
        "identity_info": "模型的身份或角色，从下一条消息起生效",
        "stop": "已停止",
        "length": "已达到回答的最大长度",
        "empty": "模型没有给出回答",
        "login": "用户名任意；密码是启动服务时设定的密码。",
    },
}
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
CSS = """
#status {min-height: 1.4em; opacity: .65; font-size: .85em}
.message-content {contain: layout paint} /* what a message places stays within it */
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: 0 auto !important}
"""

# fmt: off
SHOWN_AS_TEXT = [
    "animate", "animatemotion", "animatetransform", "applet", "area", "audio", "base", "body", "datalist", "dialog",
    "embed", "feimage", "fencedframe", "fieldset", "foreignobject", "form", "frame", "frameset", "head", "html",
    "iframe", "image", "img", "input", "label", "legend", "link", "map", "marquee", "math", "menu", "meta", "meter",
    "noembed", "noframes", "noscript", "object", "optgroup", "option", "output", "param", "picture", "portal",
    "progress", "script", "select", "set", "slot", "source", "style", "template", "textarea", "title", "track", "use",
    "video",
]
# fmt: on
"""Elements that load something, ask for something or change the page: in a message they stand as they are written."""

MAX_CHARACTERS_PER_TOKEN = 8

Conversation = list[dict[str, str]]


def serve_page(assistant: Assistant, address: Address, *, lang: str = "en") -> None:
    """Serve the page until interrupted.

    Raises:
        UserError: as `launch_page` does.
    """
    served = launch_page(assistant, address, lang=lang)
    print(served.share_url or served.local_url, flush=True)
    served.wait()


def launch_page(assistant: Assistant, address: Address, *, lang: str = "en") -> ServedPage:
    """Start serving the page in the background and return it; `close()` ends it.

    Raises:
        UserError: as `deft.serve.server.serve` does.
    """
    session = ChatSession(assistant, lang=lang)
    password = address.password
    served = serve(
        build_page(assistant, lang=lang, session=session),
        address,
        check_login=None if password is None else (lambda _, given: same_text(given, password)),
        on_gone=session.stop_reply,
        auth_message=TEXTS[lang]["login"],
        theme=gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=FONTS),
        css=CSS,
    )
    session.is_awaited = served.gate.is_awaited
    return served


def same_text(given: str, expected: str) -> bool:
    """Compare two texts in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


def build_page(assistant: Assistant, *, lang: str = "en", session: "ChatSession | None" = None) -> gr.Blocks:
    """Return the page, not yet served; `lang` is "en" or "zh", `session` what its controls do.

    Raises:
        UserError: if the language is another.
    """
    if lang not in TEXTS:
        raise UserError("the page is not available in this language", got=lang, fix=did_you_mean(lang, TEXTS))
    texts = TEXTS[lang]
    session = session or ChatSession(assistant)
    with gr.Blocks(title=f"deft · {assistant.name}", analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"### deft · {assistant.name}")
        conversation = gr.State([])
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                chat = gr.Chatbot(
                    show_label=False,
                    placeholder=texts["placeholder"],
                    layout="bubble",
                    buttons=["copy"],
                    allow_tags=SHOWN_AS_TEXT,
                    reasoning_tags=[(OPEN, CLOSE)],
                    height="65vh",
                )
                box = gr.Textbox(
                    show_label=False,
                    placeholder=texts["message"],
                    lines=1,
                    max_lines=8,
                    max_length=max_characters(assistant),
                    submit_btn=True,
                    autofocus=True,
                )
                status = gr.Markdown(elem_id="status")
                with gr.Row():
                    retry = gr.Button(texts["retry"], size="sm")
                    clear = gr.Button(texts["clear"], size="sm")
            with gr.Column(scale=1, min_width=260):
                temperature, top_p, max_new_tokens, identity = settings_controls(assistant, texts)
        settings = [temperature, top_p, max_new_tokens, identity]
        shown = [box, chat, retry, status]
        one_at_a_time: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        sending = box.submit(session.send, [box, conversation, *settings], shown, api_name="send", **one_at_a_time)
        retrying = retry.click(session.retry, [conversation, *settings], shown, api_name="retry", **one_at_a_time)
        box.stop(session.stop, None, None, api_name="stop", queue=False)
        starting_anew: dict[str, Any] = {"queue": False, "cancels": [sending, retrying]}
        clear.click(session.clear, conversation, shown, api_name="clear", **starting_anew)
        chat.clear(session.clear, conversation, shown, api_visibility="private", **starting_anew)
        temperature.change(lambda value: gr.Slider(interactive=value > 0), temperature, top_p, api_visibility="private")
        # not as the box's value: Gradio describes the controls to visitors who have not logged in yet
        page.load(lambda: assistant.identity, None, identity, api_visibility="private", queue=False)
        page.unload(session.stop)
    return page


def settings_controls(
    assistant: Assistant, texts: dict[str, str]
) -> tuple[gr.Slider, gr.Slider, gr.Slider, gr.Textbox]:
    """Make the controls for temperature, top-p, the longest reply, and the identity."""
    longest = max(assistant.context_limit_tokens * 3 // 4, assistant.max_new_tokens)
    return (
        gr.Slider(0, 2, value=TEMPERATURE, step=0.05, label=texts["temperature"], info=texts["temperature_info"]),
        gr.Slider(0.05, 1, value=TOP_P, step=0.05, label=texts["top_p"], info=texts["top_p_info"]),
        gr.Slider(1, longest, value=assistant.max_new_tokens, step=1, label=texts["max_new_tokens"]),
        gr.Textbox(
            label=texts["identity"],
            info=texts["identity_info"],
            placeholder=texts["identity_placeholder"],
            lines=4,
            max_lines=12,
            max_length=max_characters(assistant),
        ),
    )


def max_characters(assistant: Assistant) -> int:
    """Return how long a text a visitor may send: more than fits the context, and soon encoded."""
    return MAX_CHARACTERS_PER_TOKEN * assistant.context_limit_tokens


class ChatSession:
    """What the page's controls do; one object serves all sessions, told apart by Gradio's session hash.

    A session's conversation is the list in its `gr.State`, which Gradio keeps on the server. It is changed in place,
    and only by the session's current reply (`cancels`) or by a clear: what a reply does that was cleared away comes to
    nothing.
    """

    def __init__(self, assistant: Assistant, *, lang: str = "en") -> None:
        self.assistant, self.texts = assistant, TEXTS.get(lang, TEXTS["en"])
        self.lock = threading.Lock()
        self.cancels: dict[str, threading.Event] = {}
        self.identities: dict[str, list[Message]] = {}
        self.is_awaited: Callable[[str], bool] = lambda session: True

    def send(  # noqa: PLR0917 (Gradio passes the controls in order)
        self,
        text: str,
        conversation: Conversation,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        identity: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the reply to a message; a message that cannot be answered stays in the box."""
        settings = (temperature, top_p, max_new_tokens, identity)
        yield from self.answer(text, conversation, settings, str(request.session_hash))

    def retry(  # noqa: PLR0917
        self,
        conversation: Conversation,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        identity: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer the last message anew."""
        settings = (temperature, top_p, max_new_tokens, identity)
        yield from self.answer(None, conversation, settings, str(request.session_hash))

    def answer(
        self, text: str | None, conversation: Conversation, settings: tuple[float, float, float, str], key: str
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the reply to a message, or to the last one anew where `text` is None."""
        if not self.is_awaited(key):
            return
        cancel = threading.Event()
        with self.lock:
            before = list(conversation)
            if text is None and len(before) >= 2:
                text, before = before[-2]["content"], before[:-2]
            if text is not None and text.strip():
                self.cancels[key] = cancel
        if text is None or not text.strip():
            yield self.idle(before, box=text or "")
            return
        asked = [*before, {"role": "user", "content": text}]
        after, left, status = before, text, ""
        try:
            yield self.busy(asked)
            answer, reason = yield from self.pieces(asked, settings, cancel)
            if answer.strip():
                after, left = [*asked, {"role": "assistant", "content": answer}], ""
            status = {"length": self.texts["length"], "cancelled": self.texts["stop"]}.get(reason, "")
            status = status if answer.strip() or reason == "cancelled" else self.texts["empty"]
        except (UserError, RuntimeError) as error:  # a full device is a RuntimeError
            if self.cancels.get(key) is cancel:
                gr.Warning(str(error))
        except BaseException:  # the tab was closed: Gradio ends the generator
            self.end(key, cancel, conversation, before)
            raise
        if self.end(key, cancel, conversation, after):
            yield self.idle(after, box=left, status=status)
        else:  # cleared: show what is true now, should the browser have missed that this reply is no longer wanted
            yield self.idle(list(conversation), box=None)

    def pieces(
        self, asked: Conversation, settings: tuple[float, float, float, str], cancel: threading.Event
    ) -> Generator[tuple[Any, ...], None, tuple[str, str]]:
        """Yield what the page shows while a reply comes in and is wanted; return the reply, and why it ended."""
        temperature, top_p, max_new_tokens, identity = settings
        prefix = self.identity_messages(identity, cancel)
        reply = self.assistant.stream(
            {"messages": asked},
            cancel=cancel,
            identity_messages=prefix,
            temperature=temperature,
            top_p=top_p if temperature > 0 else 1.0,
            max_new_tokens=int(max_new_tokens),
        )
        answer = ""
        with closing(reply):
            while True:
                try:
                    answer += next(reply)
                except StopIteration as end:
                    return answer, end.value
                if not cancel.is_set():
                    yield self.busy([*asked, {"role": "assistant", "content": answer}])

    def end(self, key: str, cancel: threading.Event, conversation: Conversation, messages: Conversation) -> bool:
        """End a session's reply and keep `messages` as its conversation; False, and nothing, if it was cleared away."""
        with self.lock:
            if self.cancels.get(key) is not cancel:
                return False
            del self.cancels[key]
            conversation[:] = messages
            return True

    def stop(self, request: gr.Request) -> None:
        """Stop this session's reply before its next token; what is there of it stays."""
        self.stop_reply(str(request.session_hash))

    def stop_reply(self, session: str) -> None:
        """Stop a session's reply."""
        if (cancel := self.cancels.get(session)) is not None:
            cancel.set()

    def clear(self, conversation: Conversation, request: gr.Request) -> tuple[Any, ...]:
        """Stop this session's reply, so that nothing of it is kept, and begin a new conversation."""
        with self.lock:
            if (cancel := self.cancels.pop(str(request.session_hash), None)) is not None:
                cancel.set()
            conversation.clear()
        return self.idle([])

    def identity_messages(self, text: str, cancel: threading.Event) -> list[Message]:
        """Return the messages that go before the conversation, made once for each identity."""
        text = text.strip()
        if text not in self.identities:
            messages = self.assistant.identity_prefix(text, cancel=cancel)
            if cancel.is_set():
                return messages
            if len(self.identities) >= MAX_IDENTITIES:
                self.identities.clear()
            self.identities[text] = messages
        return self.identities[text]

    def busy(self, conversation: Conversation) -> tuple[Any, ...]:
        """Return what the page shows while a reply comes in."""
        box = gr.Textbox(value="", submit_btn=False, stop_btn=True)
        return box, conversation, gr.Button(interactive=False), ""

    def idle(self, conversation: Conversation, *, box: str | None = "", status: str = "") -> tuple[Any, ...]:
        """Return what the page shows between replies; `box` None leaves what is being typed."""
        buttons: dict[str, Any] = {"submit_btn": True, "stop_btn": False}
        textbox = gr.update(**buttons) if box is None else gr.Textbox(value=box, **buttons)
        return textbox, conversation, gr.Button(interactive=True), status


MAX_IDENTITIES = 64
"""Identities whose messages are kept, over all sessions."""
