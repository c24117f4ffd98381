"""The assistant: the interface that scripts of earlier versions use, and what it promises beyond."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deft.errors import UserError
from deft.model.generate import Reply
from deft.model.sampling import Sampling
from deft.prompt.formats.kinds import chat_format_for
from deft.prompt.store import save_chat_format
from deft.serve.assistant import Assistant
from deft.types import Message

Script = Callable[..., list[list[int]]]


def context(*contents: str, system: str | None = None) -> dict[str, Any]:
    """A conversation of user and assistant in turn."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def text_of(assistant: Assistant, ids: list[int]) -> str:
    return assistant.tokenizer.decode(ids, skip_special_tokens=False)


CONTEXTS = [
    context("你好"),
    context("What is 3 × 4?", "12。", "再加五呢？"),
    context("讲一个关于春天的故事，要有小鸟、花和雨。", system="你是诗人。"),
]


def test_replies_and_scores(assistant: Assistant) -> None:
    replies, scores = assistant.inference(CONTEXTS)
    assert len(replies) == 3 and all(isinstance(reply, str) for reply in replies)
    assert scores.shape == (3, 260) and scores.dtype == torch.float32
    for row, scored in zip(CONTEXTS, scores, strict=True):
        messages = [Message(role=each["role"], content=each["content"]) for each in row["messages"]]
        ids = assistant.chat_format.encode_prompt(messages)
        with torch.no_grad():
            expected = assistant.model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(scored, expected, rtol=0, atol=1e-4)


def test_a_reply_is_the_same_in_a_batch_alone_and_streamed(assistant: Assistant) -> None:
    for settings in ({}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}):
        together, _ = assistant.inference(CONTEXTS, **settings)
        assert len(set(together)) == 3
        assert [assistant.inference([each], **settings)[0][0] for each in CONTEXTS] == together
        assert ["".join(assistant.stream(each, **settings)) for each in CONTEXTS] == together


def test_no_conversations_give_no_replies(assistant: Assistant) -> None:
    replies, scores = assistant.inference([])
    assert replies == [] and scores.shape == (0, 260)


def test_a_reply_is_decoded_from_its_own_tokens(assistant: Assistant, script: Script) -> None:
    script("  答案是 <b>42</b>。\n")
    assert assistant.inference([context("生命的意义？")])[0] == ["  答案是 <b>42</b>。\n"]


def test_sampling_settings_reach_the_model(assistant: Assistant) -> None:
    assert len(assistant.inference([CONTEXTS[0]], max_new_tokens=3)[0][0]) <= 3
    one, again, other = (assistant.inference([CONTEXTS[0]], temperature=1.5, seed=seed)[0][0] for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temprature": 0.5}, "unknown sampling setting\n  got:   temprature\n  fix:   did you mean 'temperature'?"),
        ({"top_p": 0.5}, "temperature 0 always takes the likeliest token"),
        ({"max_new_tokens": 512}, "max_new_tokens leaves no room for the conversation"),
    ],
)
def test_wrong_settings_are_refused_at_once(assistant: Assistant, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assistant.inference(CONTEXTS, **settings)
    with pytest.raises(UserError, match=message):
        assistant.stream(CONTEXTS[0], **settings)


@pytest.mark.parametrize(
    ("wrong", "what", "where"),
    [
        ("你好", "a context is an object with a list of messages", "context 2"),
        ({"messages": "你好"}, "a context is an object with a list of messages", "context 2"),
        ({"messages": []}, "the conversation has no messages", "context 2"),
        ({"messages": ["你好"]}, "a message is an object with role and content", "context 2, message 1"),
        ({"messages": [{"role": "user"}]}, "a message is an object with role and content", "context 2, message 1"),
        ({"messages": [{"role": "人", "content": "你好"}]}, "unknown role", "context 2, message 1"),
        (context("你好", "您好", "  "), "empty user message", "context 2, message 3"),
        (context("你好", "您好"), "the last message should be from the user", "context 2"),
    ],
)
def test_wrong_conversations_are_named(assistant: Assistant, wrong: Any, what: str, where: str) -> None:
    with pytest.raises(UserError) as error:
        assistant.inference([CONTEXTS[0], wrong])
    assert (error.value.what, error.value.where) == (what, where)


def test_messages_in_the_wrong_order_are_named(assistant: Assistant) -> None:
    twice = {"messages": [{"role": "user", "content": "一"}, {"role": "user", "content": "二"}]}
    with pytest.raises(UserError, match=r"message 2 should be from the assistant\n  where: context 1"):
        assistant.inference([twice])


# --- the context limit --------------------------------------------------------------------------------------------


def num_tokens(assistant: Assistant, conversation: dict[str, Any]) -> int:
    """The length of a conversation's prompt, without any identity."""
    messages = [Message(role=each["role"], content=each["content"]) for each in conversation["messages"]]
    return len(assistant.chat_format.encode_prompt(messages))


def test_whole_oldest_exchanges_are_dropped_past_the_limit(tiny_folder: Path, script: Script) -> None:
    whole = Assistant(tiny_folder, identity_file=None)
    long = context("第一问" * 5, "第一答" * 5, "第二问", "第二答", "第三问")
    two, one = context("第二问", "第二答", "第三问"), context("第三问")
    limit = num_tokens(whole, two) + 20
    assistant = Assistant(tiny_folder, identity_file=None, context_limit_tokens=limit, max_new_tokens=20)
    prompts = script("好")
    assistant.inference([long, two])
    assert prompts[0] == prompts[1] and len(prompts[0]) == limit - 20
    prompts.clear()
    assistant.inference([long, one], max_new_tokens=21)
    assert prompts[0] == prompts[1], "a longer reply leaves less room for the conversation"


def test_the_limit_is_exact_to_the_token(tiny_folder: Path, script: Script) -> None:
    long = context("第一问", "第一答", "第二问")
    length = num_tokens(Assistant(tiny_folder, identity_file=None), long)
    prompts = script("好")
    for limit, shown in ((length + 8, True), (length + 7, False)):
        prompts.clear()
        assistant = Assistant(tiny_folder, identity_file=None, context_limit_tokens=limit, max_new_tokens=8)
        assistant.inference([long])
        assert ("第一问" in text_of(assistant, prompts[0])) is shown


@pytest.mark.parametrize("has_system_role", [True, False])
def test_the_identity_counts_and_stays(
    tiny_folder: Path, role_token_folder: Path, script: Script, has_system_role: bool
) -> None:
    folder = tiny_folder if has_system_role else role_token_folder
    prompts = script("好的")
    long = context("第一问" * 3, "第一答" * 3, "第二问")
    whole = Assistant(folder, identity_file=None)
    assert whole.chat_format.has_system_role is has_system_role
    whole.set_model_identity("你是诗人，住在江南。")
    prompts.clear()
    whole.inference([long])
    length = len(prompts[0])
    assert length > num_tokens(whole, long)
    for limit, shown in ((length + 8, True), (length + 7, False)):
        assistant = Assistant(folder, identity_file=None, context_limit_tokens=limit, max_new_tokens=8)
        assistant.set_model_identity("你是诗人，住在江南。")
        prompts.clear()
        assistant.inference([long])
        text = text_of(assistant, prompts[0])
        assert ("第一问" in text) is shown
        assert "江南" in text and "第二问" in text
        assert ("好的" in text) is not has_system_role


def test_a_message_that_does_not_fit_alone_is_refused(tiny_folder: Path) -> None:
    assistant = Assistant(tiny_folder, identity_file=None, context_limit_tokens=100, max_new_tokens=50)
    with pytest.raises(UserError, match="the last message is too long") as error:
        assistant.inference([context("太长" * 20)])
    assert error.value.where == "context 1"


def test_an_identity_that_takes_all_the_room_is_refused(tiny_folder: Path, role_token_folder: Path) -> None:
    for folder in (tiny_folder, role_token_folder):
        assistant = Assistant(folder, identity_file=None, context_limit_tokens=100, max_new_tokens=20)
        with pytest.raises(UserError, match="the identity leaves no room for a conversation"):
            assistant.set_model_identity("你是诗人。" * 8)
        assert assistant.identity == ""


def test_limits_fit_the_model(tiny_folder: Path) -> None:
    assistant = Assistant(tiny_folder, identity_file=None)
    assert (assistant.context_limit_tokens, assistant.max_new_tokens) == (512, 256)
    with pytest.raises(UserError, match="beyond the model's 512 positions"):
        Assistant(tiny_folder, identity_file=None, context_limit_tokens=513)
    with pytest.raises(UserError, match="leaves no room for the conversation"):
        Assistant(tiny_folder, identity_file=None, context_limit_tokens=64, max_new_tokens=64)
    with pytest.raises(UserError, match="context_limit_tokens must be a whole number at least 1"):
        Assistant(tiny_folder, identity_file=None, context_limit_tokens=0)


# --- identity -----------------------------------------------------------------------------------------------------


def test_identity_is_the_system_message_where_there_is_one(assistant: Assistant, script: Script) -> None:
    prompts = script("好")
    assistant.set_model_identity("你叫小德。\\n你是助手。")
    assert assistant.identity == "你叫小德。\n你是助手。"
    assert prompts == [], "nothing is generated for it"
    assistant.inference([context("你是谁？"), context("你是谁？", system="你叫小明。")])
    shown = sorted(text_of(assistant, ids) for ids in prompts)
    assert [("小德" in text, "小明" in text) for text in shown] == [(True, False), (False, True)]
    assert all(text.count("<|im_start|>system") == 1 for text in shown)
    assistant.set_model_identity("")
    prompts.clear()
    assistant.inference([context("你是谁？")])
    assert "system" not in text_of(assistant, prompts[0])


def test_identity_without_a_system_role_is_a_first_exchange(role_token_folder: Path, script: Script) -> None:
    assistant = Assistant(role_token_folder, identity_file=None, max_new_tokens=32)
    assert not assistant.chat_format.has_system_role
    prompts = script("我是小德。")
    assistant.set_model_identity("你叫小德。")
    assert [text_of(assistant, ids) for ids in prompts] == ["<user>你叫小德。<eot><assistant>"]
    prompts.clear()
    assistant.inference([context("你是谁？"), context("你是谁？", system="你叫小明。")])
    assert sorted(text_of(assistant, ids) for ids in prompts) == [
        "<user>你叫小德。<eot><assistant>我是小德。<eot><user>你是谁？<eot><assistant>",
        "<user>你叫小明。\n\n你是谁？<eot><assistant>",
    ]


def test_an_identity_that_the_model_has_no_reply_to_is_refused(role_token_folder: Path, script: Script) -> None:
    assistant = Assistant(role_token_folder, identity_file=None)
    script(" \n")
    with pytest.raises(UserError, match="the model gave an empty reply to its identity"):
        assistant.set_model_identity("你叫小德。")
    assert assistant.identity_messages == []


def test_the_identity_file(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Assistant(tiny_folder).identity == "", "the default file may be absent"
    (tmp_path / "model_identity.txt").write_text("你叫小德。\\n第二行", encoding="utf-8")
    assert Assistant(tiny_folder).identity == "你叫小德。\n第二行"
    assert Assistant(tiny_folder, identity_file=None).identity == ""
    with pytest.raises(UserError, match="there is no such identity file"):
        Assistant(tiny_folder, identity_file="没有.txt")


# --- streaming ----------------------------------------------------------------------------------------------------


def pieces(assistant: Assistant, data: bytes, reason: Any = "stop") -> list[str]:
    """What the assistant shows of a reply whose tokens are the bytes `data`."""

    def tokens() -> Any:
        yield from data
        return Reply(token_ids=tuple(data), finish_reason=reason, first_logits=torch.empty(0))

    return list(assistant.pieces(tokens()))


def test_pieces_hold_whole_characters(assistant: Assistant) -> None:
    assert pieces(assistant, "你好，a😀。".encode()) == ["你", "好", "，", "a", "😀", "。"]


@pytest.mark.parametrize("reason", ["length", "cancelled"])
def test_a_reply_that_was_cut_ends_with_a_whole_character(assistant: Assistant, script: Script, reason: str) -> None:
    assert pieces(assistant, "你好".encode()[:-1], reason) == ["你"]
    script("你好")
    assert assistant.inference([context("问")], max_new_tokens=5)[0] == ["你"]
    assert list(assistant.stream(context("问"), max_new_tokens=5)) == ["你"]


def test_bytes_that_the_model_meant_show_as_in_the_whole_reply(assistant: Assistant) -> None:
    broken = b"\xff\xe4a\xbd"
    assert "".join(pieces(assistant, broken)) == assistant.decode(list(broken)) == "\ufffd\ufffda\ufffd"


def test_text_that_later_tokens_rewrite_is_not_shown_twice(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentencePiece's byte fallback turns a whole run of bytes into replacement signs while its last is incomplete."""

    def decode(ids: list[int], *, is_whole: bool = True) -> str:
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(ids) if is_whole else ""

    monkeypatch.setattr(assistant, "decode", decode)
    assert pieces(assistant, "你好吗".encode()) == ["你", "好", "吗"]


@pytest.mark.parametrize("how", ["close", "event"])
def test_a_stream_can_be_stopped(assistant: Assistant, script: Script, how: str) -> None:
    steps: list[int] = []
    script("春眠不觉晓，处处闻啼鸟。", at_step=steps.append)
    cancel = threading.Event()
    reply = assistant.stream(context("背一首诗"), cancel=cancel)
    assert next(reply) + next(reply) == "春眠"
    before = len(steps)
    if how == "close":
        reply.close()
        assert list(reply) == []
    else:
        cancel.set()
        with pytest.raises(StopIteration) as end:
            next(reply)
        assert end.value.value == "cancelled"
    assert len(steps) == before


# --- the chat format ----------------------------------------------------------------------------------------------


def test_the_format_stored_with_the_checkpoint_is_used(tiny_folder: Path, tmp_path: Path, script: Script) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = Assistant(tiny_folder, identity_file=None).tokenizer
    opening = "message['role'] + '\n'"
    template = tokenizer.chat_template.replace(opening, "message['role'] + '：\n'").replace(
        "assistant\n", "assistant：\n"
    )
    save_chat_format(chat_format_for(tokenizer, chat_template=template), folder)
    prompts = script("好")
    assistant = Assistant(folder, identity_file=None)
    assistant.inference([context("你好")])
    assert text_of(assistant, prompts[0]).endswith("<|im_start|>assistant：\n")


def test_the_names_of_earlier_versions(tiny_folder: Path) -> None:
    import inference

    import deft

    assert inference.Assistant is deft.Assistant is Assistant
    assert inference.__all__ == ["Assistant"]
    assert Assistant(tiny_folder).sampling() == Sampling(max_new_tokens=256)
