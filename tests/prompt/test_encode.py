import numpy as np
import pytest
from chat_tokenizers import CHATML, chat, chatml_tokenizer, llama3_tokenizer, only, role_tokenizer

from deft.errors import NotTrainable, UserError
from deft.prompt.encode import encode_example, encode_examples, fit_prompt
from deft.prompt.formats.kinds import chat_format_for
from deft.testing.tiny import byte_tokenizer
from deft.types import IGNORED_LABEL, Example, Message

SIX = ("一", "答一", "第二个问题", "答二", "三", "答三")


def example(*contents: str, system: str | None = None) -> Example:
    return Example.create(chat(*contents, system=system), ability="chinese", source="a.jsonl:3")


def length_of(chat_format, *contents, system=None) -> int:
    return len(only(chat_format.encode_conversation(chat(*contents, system=system)))[0])


FORMATS = [chat_format_for(role_tokenizer()), chat_format_for(chatml_tokenizer()), chat_format_for(llama3_tokenizer())]
each_format = pytest.mark.parametrize("chat_format", FORMATS, ids=["roles", "chatml", "llama3"])


@each_format
def test_labels_are_the_trained_ids(chat_format):
    row = example(*SIX, system="简短回答")
    [sequence] = encode_example(row, chat_format, max_length_tokens=4096)
    ids, trained = only(chat_format.encode_conversation(row.messages))
    assert sequence.input_ids.tolist() == ids
    assert sequence.labels.tolist() == [i if t else IGNORED_LABEL for i, t in zip(ids, trained, strict=True)]
    assert sequence.input_ids.dtype == sequence.labels.dtype == np.int32
    assert (sequence.id, sequence.ability) == (row.id, "chinese")


@each_format
def test_the_oldest_exchanges_go_whole_and_the_system_message_stays(chat_format):
    row = example(*SIX, system="简短回答")
    for kept, shorter in ((6, 4), (4, 2)):
        fits = length_of(chat_format, *SIX[-kept:], system="简短回答")
        whole = only(chat_format.encode_conversation(chat(*SIX[-kept:], system="简短回答")))[0]
        assert encode_example(row, chat_format, max_length_tokens=fits)[0].input_ids.tolist() == whole
        less = only(chat_format.encode_conversation(chat(*SIX[-shorter:], system="简短回答")))[0]
        assert encode_example(row, chat_format, max_length_tokens=fits - 1)[0].input_ids.tolist() == less


@each_format
def test_every_reply_keeps_its_end_of_turn_at_any_limit(chat_format):
    row = example(*SIX)
    for limit in range(length_of(chat_format, *SIX[-2:]), length_of(chat_format, *SIX) + 1):
        [sequence] = encode_example(row, chat_format, max_length_tokens=limit)
        assert len(sequence) <= limit
        trained = [*(sequence.labels != IGNORED_LABEL).tolist(), False]
        ends = [i for i in range(len(sequence)) if trained[i] and not trained[i + 1]]
        assert ends
        assert all(int(sequence.input_ids[end]) in chat_format.end_of_turn_ids for end in ends)


@each_format
def test_a_last_exchange_that_is_too_long_is_refused_with_both_lengths(chat_format):
    row = example("一", "答一", "写一首诗", "春眠不觉晓，处处闻啼鸟。" * 5)
    full = length_of(chat_format, *(m.content for m in row.messages))
    last = length_of(chat_format, *(m.content for m in row.messages[2:]))
    with pytest.raises(NotTrainable) as refusal:
        encode_example(row, chat_format, max_length_tokens=last - 1)
    assert refusal.value.reason == "too_long"
    assert refusal.value.got == f"{full} tokens, {last} with the last exchange alone"
    assert encode_example(row, chat_format, max_length_tokens=last)


def test_encode_examples_keeps_counts_and_says_why():
    chat_format = chat_format_for(chatml_tokenizer())
    rows = [example("一", "答"), example(*SIX), example("写诗", "春眠不觉晓。" * 40)]
    limit = length_of(chat_format, *SIX[-4:])
    result = encode_examples(rows, chat_format, max_length_tokens=limit)
    assert [sequence.id for sequence in result.sequences] == [rows[0].id, rows[1].id]
    assert result.num_shortened == 1
    (dropped,) = result.dropped
    assert (dropped.id, dropped.stage, dropped.reason, dropped.source) == (
        rows[2].id,
        "encode",
        "too_long",
        "a.jsonl:3",
    )
    assert f"longer than {limit} tokens" in dropped.detail


def test_other_refusals_are_dropped_rows_too():
    template = CHATML.replace("m.content", "(m.content | replace('坏', '好'))")
    chat_format = chat_format_for(chatml_tokenizer(template))
    result = encode_examples([example("坏", "答"), example("好", "答")], chat_format, max_length_tokens=100)
    assert [dropped.reason for dropped in result.dropped] == ["template_rewrites_content"]
    assert len(result.sequences) == 1


@each_format
def test_fit_prompt_drops_whole_exchanges_and_keeps_the_identity(chat_format):
    messages = chat(*SIX, "四", system="我是小明")
    for start in (0, 2, 4, 6):
        kept = [messages[0], *messages[1 + start :]]
        limit = len(chat_format.encode_prompt(kept))
        assert fit_prompt(messages, chat_format, max_prompt_tokens=limit) == kept
    with pytest.raises(UserError) as error:
        fit_prompt(messages, chat_format, max_prompt_tokens=limit - 1)
    assert f"{limit} tokens" in str(error.value)
    assert f"{limit - 1} are allowed" in str(error.value)


def test_fit_prompt_wants_a_user_message_last():
    with pytest.raises(UserError, match="last message"):
        fit_prompt(chat("一", "二"), FORMATS[0], max_prompt_tokens=100)


@pytest.mark.parametrize("weight", [-1, 1e-50, 1e39, float("nan"), float("inf"), "1"])
def test_a_loss_weight_is_one_that_a_token_can_carry(weight: object) -> None:
    with pytest.raises(UserError, match="loss weight of a reply"):
        Message(role="assistant", content="答", weight=weight)  # type: ignore[arg-type]


def test_the_least_and_largest_loss_weights_reach_the_tokens() -> None:
    messages = [Message(role="user", content="问"), Message(role="assistant", content="一", weight=1e-6)]
    messages += [Message(role="user", content="再问"), Message(role="assistant", content="二", weight=1e6)]
    chat_format = chat_format_for(byte_tokenizer())
    [row] = encode_example(Example.create(messages), chat_format, max_length_tokens=99)
    assert row.weights is not None
    assert row.weights[row.labels != IGNORED_LABEL].tolist() == pytest.approx([1e-6] * 4 + [1e6] * 4)
