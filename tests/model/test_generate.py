"""Generation: a reply is what the row alone gives, whatever is beside it; settings are checked; it can be stopped."""

import math
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from deft.errors import UserError
from deft.model import generate as module
from deft.model.generate import Batch, generate, start_rows, stream
from deft.model.sampling import Sampling, pick, smallest_kept
from deft.testing.tiny import IM_END_ID, byte_tokenizer, tiny_model

ARCHITECTURES = ("llama", "qwen3", "gemma3", "baichuan2", "baichuan2_rope")
TEXT = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。Spring sleeps past dawn; birds sing everywhere."
SMOLLM = Path(__file__).parents[2] / "models/smollm2-135m"


def prompt(length: int) -> list[int]:
    """The first `length` bytes of a Chinese text: lengths cross Gemma's sliding window of 16."""
    return list((TEXT * 3).encode()[:length])


def plain_greedy(model: PreTrainedModel, ids: list[int], num_tokens: int, stop: set[int]) -> list[int]:
    """Greedy decoding without cache, padding or batch: the reference."""
    reply: list[int] = []
    while len(reply) < num_tokens:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + reply]), use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        reply.append(token)
    return reply


def replies(model: PreTrainedModel, prompts: list[list[int]], **settings: Any) -> list[tuple[int, ...]]:
    found = generate(model, prompts, stop_token_ids=[IM_END_ID], settings=Sampling(**settings))
    return [reply.token_ids for reply in found]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_mixed_lengths_gives_what_plain_decoding_gives_each_row(architecture: Any) -> None:
    model = tiny_model(architecture)
    prompts = [prompt(length) for length in (1, 2, 3, 5, 9, 15, 16, 17, 33, 60)]
    found = replies(model, prompts, max_new_tokens=20)
    assert found == [tuple(plain_greedy(model, ids, 20, {IM_END_ID})) for ids in prompts]
    assert len(set(found)) > 5, "the replies must differ for this to prove anything"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_uses_no_argument_that_transformers_is_giving_up(architecture: Any) -> None:
    """Its warning would stand in the middle of what a user is shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert replies(tiny_model(architecture), [prompt(3), prompt(9)], max_new_tokens=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_leave_the_batch_at_different_times(architecture: Any) -> None:
    model = tiny_model(architecture, seed=3)
    prompts = [prompt(length) for length in (4, 21, 7, 40)]
    free = [plain_greedy(model, ids, 16, set()) for ids in prompts]
    stop = {free[0][2], free[1][9]}
    expected = [plain_greedy(model, ids, 16, stop) for ids in prompts]
    assert len({len(row) for row in expected}) > 1
    found = generate(model, prompts, stop_token_ids=stop, settings=Sampling(max_new_tokens=16))
    assert [list(reply.token_ids) for reply in found] == expected
    assert [reply.finish_reason for reply in found] == ["stop" if len(row) < 16 else "length" for row in expected]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_first_logits_are_those_of_a_plain_forward(architecture: Any) -> None:
    model = tiny_model(architecture)
    prompts = [prompt(length) for length in (3, 30, 11)]
    settings = Sampling(max_new_tokens=2)
    found = generate(model, prompts, stop_token_ids=[IM_END_ID], settings=settings, keep_first_logits=True)
    for ids, reply in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert reply.first_logits.dtype == torch.float32
        torch.testing.assert_close(reply.first_logits, expected, rtol=0, atol=1e-4)


def test_first_logits_are_left_out_when_not_wanted() -> None:
    [reply] = generate(
        tiny_model("llama"),
        [prompt(3)],
        stop_token_ids=[],
        settings=Sampling(max_new_tokens=1),
    )
    assert reply.first_logits.shape == (0,)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 5}])
def test_a_near_tie_is_settled_by_the_row_alone(sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head so small that every choice is nearly tied, noise in batched passes must not reach the replies."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-5)
    prompts = [prompt(length) for length in (5, 12, 8)]
    settings = {"max_new_tokens": 6, **sampling}
    alone = [replies(model, [ids], **settings)[0] for ids in prompts]
    forward = Batch.forward

    def noisy(batch: Batch) -> torch.Tensor:
        logits = forward(batch)
        return logits + (torch.rand_like(logits) - 0.5) * 4e-4 if len(batch.rows) > 1 else logits

    monkeypatch.setattr(Batch, "forward", noisy)
    assert replies(model, prompts, **settings) == alone
    monkeypatch.setattr(module, "NEAR_TIE", dict.fromkeys(module.NEAR_TIE, 0.0))
    assert replies(model, prompts, **settings) != alone, "without the rule the noise shows"


@pytest.mark.parametrize(
    ("dtype", "exact", "expected"),
    [
        (torch.float32, None, 3),
        (torch.float32, False, 0),
        (torch.bfloat16, None, 0),
        (torch.float16, None, 0),
        (torch.bfloat16, True, 3),
    ],
)
def test_near_ties_are_made_again_where_it_is_asked_for(
    dtype: torch.dtype, exact: bool | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows, every choice nearly tied: two of them are the same row, so three passes settle the first step."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-5)
    passes: list[tuple[int, ...]] = []
    alone = Batch.alone
    monkeypatch.setattr(Batch, "alone", lambda batch, row: passes.append(tuple(row.ids)) or alone(batch, row))  # type: ignore[func-returns-value]
    prompts = [prompt(5), prompt(9), prompt(5), prompt(7)]
    settings = Sampling(max_new_tokens=1, exact=exact)
    generate(model.to(dtype), prompts, stop_token_ids=[], settings=settings)
    assert len(passes) == expected and len(set(passes)) == expected


def test_equal_prompts_in_a_call_get_samples_of_their_own() -> None:
    model = tiny_model("llama")
    settings = {"max_new_tokens": 12, "temperature": 1.5, "seed": 7}
    four = replies(model, [prompt(6)] * 4, **settings)
    assert len(set(four)) == 4
    assert replies(model, [prompt(6)] * 4, **settings) == four, "and the same again in an equal call"
    assert replies(model, [prompt(6)], **settings) == four[:1]
    mixed = replies(model, [prompt(6), prompt(9), prompt(6)], **settings)
    assert [mixed[0], mixed[2]] == four[:2], "other prompts between them change nothing"
    assert len(set(replies(model, [prompt(6)] * 3, max_new_tokens=4))) == 1, "greedy replies stay equal"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batching_noise_is_well_within_the_margin(architecture: Any) -> None:
    """What `NEAR_TIE` claims of fp32: cache, padding, windows and rows that leave change the logits by far less."""
    model = tiny_model(architecture)
    settings = Sampling(max_new_tokens=24)
    batch = Batch(model, start_rows(model, [prompt(length) for length in (3, 50, 20, 14)], settings), settings)
    for step in range(20):
        logits = batch.forward()
        for row, row_logits in zip(batch.rows, logits, strict=True):
            assert (row_logits - batch.alone(row)[0]).abs().max() < module.NEAR_TIE[torch.float32] / 4
            row.ids.append(prompt(90)[len(row.ids) + 1])
        batch.advance([0, 2, 3] if step == 4 else [0, 2] if step == 9 else list(range(len(batch.rows))))
    assert logits.std() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_is_reproducible_and_does_not_depend_on_the_rows_beside(architecture: Any) -> None:
    model = tiny_model(architecture)
    prompts = [prompt(length) for length in (4, 18, 9, 27)]
    settings = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.2}
    together = replies(model, prompts, seed=7, **settings)
    assert replies(model, prompts, seed=7, **settings) == together
    assert replies(model, prompts[::-1], seed=7, **settings) == together[::-1]
    assert [replies(model, [ids], seed=7, **settings)[0] for ids in prompts] == together
    assert replies(model, prompts, seed=8, **settings) != together


def test_without_a_seed_each_call_draws_anew() -> None:
    model = tiny_model("llama")
    drawn = {replies(model, [prompt(6)], max_new_tokens=12, temperature=2.0)[0] for _ in range(4)}
    assert len(drawn) > 1


def test_sampled_frequencies_follow_the_softmax_within_top_k_and_top_p() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]])).repeat(20_000, 1)
    settings = Sampling(temperature=1.0, top_k=4, top_p=0.9)
    noise = -torch.empty_like(logits).exponential_(generator=torch.Generator().manual_seed(0)).log()
    tokens, _ = pick(logits, None, noise, settings, 0.0)
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    # top-k leaves 0.96 in all; the first three hold 0.9/0.96 = 0.9375 and the first two 0.833, so three stay
    expected = torch.tensor([0.5, 0.3, 0.1, 0.0, 0.0]) / 0.9
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.015)


def kept_by(top_p: float, tolerance: float = 0.0) -> float:
    likeliest = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    return round(float(smallest_kept(likeliest, top_p, tolerance).exp()), 6)


def test_smallest_kept_by_hand() -> None:
    assert [kept_by(top_p) for top_p in (1e-9, 0.5, 0.51, 0.76, 1.0)] == [0.5, 0.5, 0.25, 0.15, 0.1]
    assert kept_by(0.5, math.log(2.0)) == 0.25, "odds 1 become 2: top_p is 2/3"
    assert kept_by(0.51, -math.log(2.0)) == 0.5


def test_what_the_edge_of_top_k_and_top_p_decides_does_not_stand() -> None:
    def stands(probabilities: list[float], winner: int, tolerance: float, **truncation: Any) -> bool:
        logits = torch.log(torch.tensor([probabilities]))
        noise = torch.zeros_like(logits)
        noise[0, winner] = 50.0
        token, settled = pick(logits, None, noise, Sampling(temperature=1.0, **truncation), tolerance)
        assert int(token) == winner or not settled
        return bool(settled)

    assert stands([0.96, 0.03, 0.01], 0, 0.1, top_p=0.9), "a nucleus of one token is no edge"
    assert stands([0.6, 0.3, 0.1], 1, 0.1, top_p=0.9)
    assert stands([0.6, 0.3, 0.1], 1, 0.1, top_p=0.61) is False, "0.6 of 0.61 stand before it"
    assert stands([0.6, 0.3, 0.1], 1, 0.1, top_p=0.59) is False, "not kept, but it might be"
    assert stands([0.4, 0.39, 0.21], 1, 0.001, top_k=2)
    assert stands([0.4, 0.31, 0.29], 1, 0.1, top_k=2) is False, "the third is nearly the second"


def test_a_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.4]])
    seen = torch.tensor([[True, False, True, False]])
    settings = Sampling(repetition_penalty=2.0)
    assert pick(logits, seen, None, settings, 0.0)[0].tolist() == [1]  # 1.0, 1.5, -2.0, -1.4
    assert pick(logits[:, 2:], seen[:, 2:], None, settings, 0.0)[0].tolist() == [1]


def test_a_repetition_penalty_keeps_greedy_from_repeating() -> None:
    model = tiny_model("llama")
    [reply] = replies(model, [prompt(6)], max_new_tokens=30, repetition_penalty=50.0)
    assert len(set(reply)) > len(set(replies(model, [prompt(6)], max_new_tokens=30)[0]))


def test_batches_are_bounded_by_tokens_and_change_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    prompts = [prompt(length) for length in (5, 20, 6, 19, 7)]
    expected = replies(model, prompts, max_new_tokens=4)
    widths: list[tuple[int, ...]] = []
    start = Batch.__init__

    def recorded(batch: Batch, model: PreTrainedModel, rows: list[Any], settings: Sampling) -> None:
        start(batch, model, rows, settings)
        widths.append(tuple(batch.mask.shape))

    monkeypatch.setattr(Batch, "__init__", recorded)
    settings = Sampling(max_new_tokens=4)
    found = generate(model, prompts, stop_token_ids=[IM_END_ID], settings=settings, max_batch_tokens=50)
    assert [reply.token_ids for reply in found] == expected
    assert widths == [(2, 20), (3, 7)]  # 2 × (20 + 4) ≤ 50; 3 × (7 + 4) ≤ 50
    widths.clear()
    generate(model, prompts[:2], stop_token_ids=[IM_END_ID], settings=settings, max_batch_tokens=1)
    assert widths == [(1, 20), (1, 5)], "a row larger than the bound still runs, alone"


def test_on_token_sees_every_token_of_a_reply_and_no_stop_token() -> None:
    model = tiny_model("llama")
    seen: dict[int, list[int]] = {0: [], 1: []}
    stop = plain_greedy(model, prompt(5), 8, set())[4]
    found = generate(
        model,
        [prompt(5), prompt(11)],
        stop_token_ids=[stop],
        settings=Sampling(max_new_tokens=8),
        on_token=lambda row, token: seen[row].append(token),
    )
    assert [tuple(seen[0]), tuple(seen[1])] == [reply.token_ids for reply in found]
    assert all(stop not in reply.token_ids for reply in found)


def test_should_stop_ends_unfinished_rows_as_cancelled() -> None:
    model = tiny_model("llama")
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    settings = Sampling(max_new_tokens=50)
    full = generate(model, [prompt(5), prompt(9)], stop_token_ids=[], settings=settings)
    asked = 0
    found = generate(model, [prompt(5), prompt(9)], stop_token_ids=[], settings=settings, should_stop=should_stop)
    assert [reply.finish_reason for reply in found] == ["cancelled", "cancelled"]
    assert [reply.token_ids for reply in found] == [reply.token_ids[:3] for reply in full]
    found = generate(model, [prompt(5)], stop_token_ids=[], settings=settings, should_stop=lambda: True)
    assert (found[0].token_ids, found[0].first_logits.numel()) == ((), 0)


def test_streaming_gives_the_reply_and_its_end() -> None:
    model = tiny_model("gemma3")
    settings = Sampling(max_new_tokens=9)
    tokens = stream(model, prompt(20), stop_token_ids=[IM_END_ID], settings=settings)
    found = []
    while True:
        try:
            found.append(next(tokens))
        except StopIteration as end:
            assert end.value.token_ids == tuple(found)
            assert end.value.finish_reason == "length"
            break
    assert tuple(found) == replies(model, [prompt(20)], max_new_tokens=9)[0]


@pytest.mark.parametrize("how", ["close", "event"])
def test_a_stream_is_cancelled_before_the_next_token_is_computed(how: str) -> None:
    model = tiny_model("llama")
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    cancel = threading.Event()
    tokens = stream(model, prompt(5), stop_token_ids=[], settings=Sampling(max_new_tokens=99), cancel=cancel)
    model.register_forward_pre_hook(count)
    next(tokens), next(tokens)
    before = passes
    if how == "close":
        tokens.close()
    else:
        cancel.set()
    with pytest.raises(StopIteration) as ended:
        next(tokens)
    assert passes == before
    if how == "event":
        assert ended.value.value.finish_reason == "cancelled"
        assert len(ended.value.value.token_ids) == 2


def test_no_gradients_are_kept_and_training_mode_is_put_back() -> None:
    model = tiny_model("llama").train()
    modes = []
    model.register_forward_pre_hook(lambda *_: modes.append(model.training))
    [reply] = generate(model, [prompt(4)], stop_token_ids=[], settings=Sampling(max_new_tokens=2))
    assert modes and not any(modes)
    assert model.training
    assert not reply.first_logits.requires_grad


def test_a_padding_token_in_the_text_is_text() -> None:
    """SmolLM2 pads with its end-of-turn token, which every multi-turn prompt holds."""
    model = tiny_model("llama")
    ids = [0, 0, *prompt(4), 0, *prompt(3)]
    both = replies(model, [ids, prompt(30)], max_new_tokens=8)
    assert both[0] == tuple(plain_greedy(model, ids, 8, {IM_END_ID}))


def test_prompts_are_checked() -> None:
    model = tiny_model("llama", max_length_tokens=32)
    with pytest.raises(UserError, match="a prompt has no tokens\n  where: prompt 2"):
        replies(model, [prompt(3), []], max_new_tokens=4)
    with pytest.raises(UserError, match="do not fit into the model's 32 positions\n  where: prompt 1") as error:
        replies(model, [prompt(29)], max_new_tokens=4)
    assert error.value.got == "29 prompt tokens + max_new_tokens 4"
    assert len(replies(model, [prompt(28)], max_new_tokens=4)[0]) <= 4
    assert generate(model, [], stop_token_ids=[], settings=Sampling()) == []


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens must be a whole number at least 1"),
        ("max_new_tokens", 2.5, "max_new_tokens must be a whole number at least 1"),
        ("max_new_tokens", True, "max_new_tokens must be a whole number at least 1"),
        ("temperature", -0.1, "temperature must be a number at least 0"),
        ("temperature", math.nan, "temperature must be a number at least 0"),
        ("temperature", "高", "temperature must be a number at least 0"),
        ("top_p", 0.0, "top_p must be a number above 0 and at most 1"),
        ("top_p", 1.1, "top_p must be a number above 0 and at most 1"),
        ("top_k", -1, "top_k must be a whole number at least 0"),
        ("repetition_penalty", 0.0, "repetition_penalty must be a number above 0"),
        ("seed", 1.5, "seed must be a whole number at least 0"),
    ],
)
def test_settings_are_checked(setting: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        Sampling(**{setting: value})
    assert message in str(error.value)
    assert error.value.got is value


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.9), ("top_k", 5)])
def test_settings_that_greedy_choice_would_ignore_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"temperature 0 always takes the likeliest token, so {setting}"):
        Sampling(**{setting: value})
    Sampling(**{setting: value}, temperature=0.5)


@pytest.mark.slow
@pytest.mark.skipif(not (SMOLLM / "model.safetensors").exists(), reason="smollm2-135m has not been pulled")
def test_a_real_model_answers_in_a_batch_as_alone() -> None:
    from deft.model.load import load_model

    loaded = load_model(SMOLLM, dtype="float32")
    ends = [loaded.tokenizer.eos_token_id]
    texts = ["Hi", "写一首关于春天的诗。", "List three fruits and say why you like each of them.", "1+1=?"]
    prompts = [
        loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]
    settings = Sampling(max_new_tokens=24)
    together = generate(loaded.model, prompts, stop_token_ids=ends, settings=settings)
    for ids, reply in zip(prompts, together, strict=True):
        assert list(reply.token_ids) == plain_greedy(loaded.model, ids, 24, set(ends))


def test_replies_decode_to_the_bytes_they_are() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(prompt(9)) == "春眠不"
