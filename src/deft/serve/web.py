"""Chat in the browser: one Gradio page over an `Assistant`.

Conversations live in the session's memory and nowhere else: nothing is logged, Gradio's run history and analytics are
off, and the page needs nothing from outside. Each session has its own conversation and identity.
"""

import hmac
import ipaddress
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from deft.errors import UserError, did_you_mean
from deft.serve.assistant import Assistant
from deft.types import Message

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported

import gradio as gr

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
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: 0 auto !important}
"""

Conversation = list[dict[str, str]]


def serve_page(
    assistant: Assistant,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    password: str | None = None,
    lang: str = "en",
) -> None:
    """Serve the page until interrupted.

    Raises:
        UserError: as `launch_page` does.
    """
    page = launch_page(assistant, host=host, port=port, share=share, password=password, lang=lang)
    print(page.share_url or page.local_url, flush=True)
    page.block_thread()


def launch_page(
    assistant: Assistant,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    password: str | None = None,
    lang: str = "en",
) -> gr.Blocks:
    """Start serving the page in the background and return it; `close()` ends it.

    `share` asks Gradio for a public link, through Gradio's servers.

    Raises:
        UserError: if others could reach the page without a password, the port is taken, or there is no public link.
    """
    check_reachable(host, share=share, password=password)
    page = build_page(assistant, lang=lang)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=None if password is None else (lambda _, given: same_text(given, password)),
            auth_message=TEXTS[lang]["login"],
            theme=gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=FONTS),
            css=CSS,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
        )
    except OSError as error:
        raise UserError(f"cannot serve on {host}:{port}", got=str(error), fix="choose another --port") from error
    if share and page.share_url is None:
        page.close()
        raise UserError("Gradio gave no public link", fix="check the network, or leave --share out")
    return page


def check_reachable(host: str, *, share: bool, password: str | None) -> None:
    """Check that a page which others can reach has a password; it can be asked before a model is loaded.

    Raises:
        UserError: if it has none.
    """
    if password is not None and not password:
        raise UserError("the password is empty", fix="give one, or leave the option out")
    if password is None and (share or not is_loopback(host)):
        raise UserError(
            "others could reach this page, so it needs a password",
            got="share" if share else f"host {host}",
            fix="--password, or leave --share and --host out",
        )


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def same_text(given: str, expected: str) -> bool:
    """Compare two texts in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


def build_page(assistant: Assistant, *, lang: str = "en") -> gr.Blocks:
    """Return the page, not yet served; `lang` is "en" or "zh".

    Raises:
        UserError: if the language is another.
    """
    if lang not in TEXTS:
        raise UserError("the page does not speak this language", got=lang, fix=did_you_mean(lang, TEXTS))
    texts = TEXTS[lang]
    session = ChatSession(assistant, texts)
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
                    allow_tags=False,
                    height="65vh",
                )
                box = gr.Textbox(
                    show_label=False,
                    placeholder=texts["message"],
                    lines=1,
                    max_lines=8,
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
        shown = [box, chat, conversation, retry, status]
        one_at_a_time: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        sending = box.submit(session.send, [box, conversation, *settings], shown, api_name="send", **one_at_a_time)
        retrying = retry.click(session.retry, [conversation, *settings], shown, api_name="retry", **one_at_a_time)
        box.stop(session.stop, None, None, api_name="stop", queue=False)
        starting_anew: dict[str, Any] = {"queue": False, "cancels": [sending, retrying]}
        clear.click(session.clear, None, shown, api_name="clear", **starting_anew)
        chat.clear(session.clear, None, shown, api_visibility="private", **starting_anew)
        temperature.change(lambda value: gr.Slider(interactive=value > 0), temperature, top_p, api_visibility="private")
        page.unload(session.stop)
    return page


def settings_controls(
    assistant: Assistant, texts: dict[str, str]
) -> tuple[gr.Slider, gr.Slider, gr.Slider, gr.Textbox]:
    """Make the controls for temperature, top-p, the longest reply, and the identity."""
    longest = max(assistant.context_limit_tokens * 3 // 4, assistant.max_new_tokens)
    return (
        gr.Slider(0, 2, value=0.7, step=0.05, label=texts["temperature"], info=texts["temperature_info"]),
        gr.Slider(0.05, 1, value=0.9, step=0.05, label=texts["top_p"], info=texts["top_p_info"]),
        gr.Slider(1, longest, value=assistant.max_new_tokens, step=1, label=texts["max_new_tokens"]),
        gr.Textbox(
            value=assistant.identity,
            label=texts["identity"],
            info=texts["identity_info"],
            placeholder=texts["identity_placeholder"],
            lines=4,
            max_lines=12,
        ),
    )


class ChatSession:
    """What the page's controls do; one object serves all sessions, told apart by Gradio's session hash."""

    def __init__(self, assistant: Assistant, texts: dict[str, str]) -> None:
        self.assistant, self.texts = assistant, texts
        self.cancels: dict[str, threading.Event] = {}
        self.identities: dict[str, list[Message]] = {}

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
        if not text.strip():
            yield self.idle(conversation, box=text)
            return
        asked = [*conversation, {"role": "user", "content": text}]
        sampling = {
            "temperature": temperature,
            "top_p": top_p if temperature > 0 else 1.0,
            "max_new_tokens": int(max_new_tokens),
        }
        key = str(request.session_hash)
        cancel = self.cancels[key] = threading.Event()
        answer, reason = "", "stop"
        yield self.busy(asked)
        try:
            prefix = self.identity_messages(identity)
            with closing(
                self.assistant.stream({"messages": asked}, cancel=cancel, identity_messages=prefix, **sampling)
            ) as reply:
                while True:
                    try:
                        answer += next(reply)
                    except StopIteration as end:
                        reason = end.value
                        break
                    yield self.busy([*asked, {"role": "assistant", "content": answer}])
        except (UserError, RuntimeError) as error:  # a full device is a RuntimeError
            gr.Warning(str(error))
            yield self.idle(conversation, box=text)
            return
        finally:
            if self.cancels.get(key) is cancel:
                del self.cancels[key]
        if not answer.strip():
            yield self.idle(conversation, box=text, status=self.texts["empty"])
            return
        status = {"length": self.texts["length"], "cancelled": self.texts["stop"]}.get(reason, "")
        yield self.idle([*asked, {"role": "assistant", "content": answer}], status=status)

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
        if len(conversation) < 2:
            yield self.idle(conversation)
            return
        text = conversation[-2]["content"]
        yield from self.send(text, conversation[:-2], temperature, top_p, max_new_tokens, identity, request)

    def stop(self, request: gr.Request) -> None:
        """Stop this session's reply before its next token; what is there of it stays."""
        if (cancel := self.cancels.get(str(request.session_hash))) is not None:
            cancel.set()

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Stop this session's reply and begin a new conversation."""
        self.stop(request)
        return self.idle([])

    def identity_messages(self, text: str) -> list[Message]:
        """Return the messages that go before the conversation, made once for each identity."""
        text = text.strip()
        if text not in self.identities:
            if len(self.identities) >= MAX_IDENTITIES:
                self.identities.clear()
            self.identities[text] = self.assistant.identity_prefix(text)
        return self.identities[text]

    def busy(self, conversation: Conversation) -> tuple[Any, ...]:
        """Return what the page shows while a reply comes in; the session's conversation is not changed yet."""
        box = gr.Textbox(value="", submit_btn=False, stop_btn=True)
        return box, conversation, gr.skip(), gr.Button(interactive=False), ""

    def idle(self, conversation: Conversation, *, box: str = "", status: str = "") -> tuple[Any, ...]:
        """Return what the page shows between replies."""
        textbox = gr.Textbox(value=box, submit_btn=True, stop_btn=False)
        return textbox, conversation, conversation, gr.Button(interactive=True), status


MAX_IDENTITIES = 64
"""Identities whose messages are kept, over all sessions."""
