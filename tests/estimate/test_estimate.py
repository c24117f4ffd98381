"""A dry run: counts by hand, memory against what autograd really keeps, steps against a real run, and its words."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, PreTrainedConfig

from deft.commands.app import app
from deft.commands.exits import run_or_explain
from deft.errors import UserError
from deft.estimate.dry_run import NAMES, dry_run, parse_bytes, shown_bytes, shown_time
from deft.estimate.estimate import Estimate, estimate
from deft.estimate.memory import MemoryEstimate, divide, meta_model
from deft.estimate.trace import Moment, StepTrace, trace_step
from deft.estimate.workload import MachineSpeed, flop_per_epoch, run_time_s, workload
from deft.model.cost import ModelSize, model_size
from deft.model.likelihood import PackedRows, takes_packs
from deft.prompt.encode import EncodeResult
from deft.testing.tiny import save_tiny, tiny_model
from deft.training.config import TrainConfig
from deft.training.order import RowOrder, lay_in_packs
from deft.training.record import read_metrics
from deft.training.run import train
from deft.types import Dropped, Example, Message, TokenSequence

SPEED = MachineSpeed(device="cpu", matmul_flop_per_s=1e9, memory_bytes_per_s=1e9)
BAICHUAN2_7B = LlamaConfig(
    vocab_size=125_696,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    tie_word_embeddings=False,
)
SIZE = ModelSize(
    num_parameters=1000,
    num_trainable=1000,
    weights_bytes=4000,
    gradients_bytes=4000,
    optimizer_bytes=8000,
    matrix_parameters=700,
    adapter_parameters=0,
    head_parameters=100,
    largest_matrix_parameters=50,
    quantised_bytes_saved=0,
    layer_bytes=300,
    layer_trainable_bytes=300,
    num_layers=2,
)


def tiny_config(architecture: str = "llama", **shape: int) -> PreTrainedConfig:
    return tiny_model(architecture, **shape).config  # type: ignore[arg-type]


def row(name: str, length: int, num_supervised: int) -> TokenSequence:
    ids = np.arange(length, dtype=np.int32) % 200
    labels = np.where(np.arange(length) >= length - num_supervised, ids, -100).astype(np.int32)
    return TokenSequence(id=name, input_ids=ids, labels=labels)


def rows(*lengths: int) -> EncodeResult:
    found = tuple(row(f"r{number}", length, length // 2) for number, length in enumerate(lengths))
    return EncodeResult(sequences=found, places=tuple(range(len(found))), dropped=(), num_shortened=0)


def examples(count: int) -> list[Example]:
    made = []
    for number in range(count):
        question = f"{number} 加 {number % 7} 等于几？" + "请想一想。" * (number % 4)
        made.append(Example.create([Message(role="user", content=question), Message(role="assistant", content="好。")]))
    return made


# --- parameters -----------------------------------------------------------------------------------------------------


def test_a_fully_trained_model_of_baichuan2s_shape_takes_16_bytes_a_parameter() -> None:
    size = model_size(meta_model(BAICHUAN2_7B, method="full", dtype=torch.float32), "full")
    assert size.num_parameters == size.num_trainable == 7_505_973_248
    buffers = size.weights_bytes - 4 * 7_505_973_248
    assert 0 < buffers < 2000, "the rotary frequencies: 64 numbers, twice"
    assert size.gradients_bytes == 4 * 7_505_973_248
    assert size.optimizer_bytes == 8 * 7_505_973_248
    assert size.head_parameters == 125_696 * 4096
    assert size.matrix_parameters == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert size.largest_matrix_parameters == 4096 * 11_008
    assert size.layer_bytes == 4 * 125_696 * 4096, "the embeddings are larger than a layer (0.8 GB)"


def test_adapters_add_rank_times_inputs_and_outputs_of_every_linear_layer() -> None:
    size = model_size(meta_model(tiny_config(), method="lora", dtype=torch.float32, lora_rank=4), "lora")
    # hidden 64, two key-value heads of 16, feed-forward 128: q, o; k, v; gate, up; down
    per_layer = 2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 128) + (128 + 64)
    assert size.num_trainable == size.adapter_parameters == 2 * 4 * per_layer
    assert size.gradients_bytes == 4 * size.num_trainable
    assert size.optimizer_bytes == 8 * size.num_trainable
    assert size.matrix_parameters == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


def test_adapters_on_named_layers_only_and_their_dropout_are_what_the_settings_say() -> None:
    config = tiny_config()

    def planned(**changes: object) -> tuple[int, int]:
        settings = TrainConfig(method="lora", lora_rank=4, **changes)  # type: ignore[arg-type]
        found = estimate(settings, config, rows(60), speed=SPEED, methods=())
        return found.size.num_trainable, found.chosen.saved_per_layer_bytes

    plain, named = planned(), planned(lora_targets=("q_proj", "v_proj"))
    assert named[0] == 2 * 4 * ((64 + 64) + (64 + 32))
    assert named[1] < plain[1] < planned(lora_dropout=0.1)[1], "dropout keeps its masks and what it let through"


def test_dora_adds_a_magnitude_for_each_output() -> None:
    lora, dora = (
        model_size(meta_model(tiny_config(), method=method, dtype=torch.float32, lora_rank=4), method)
        for method in ("lora", "dora")
    )
    assert dora.num_trainable - lora.num_trainable == 2 * (64 + 64 + 32 + 32 + 128 + 128 + 64)


def test_a_4_bit_base_holds_its_matrices_in_4_bits_and_their_scales_and_nothing_else() -> None:
    lora, qlora = (
        model_size(meta_model(BAICHUAN2_7B, method=method, dtype=torch.bfloat16), method)
        for method in ("lora", "qlora")
    )
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert lora.weights_bytes - qlora.weights_bytes == matrices * 2 - matrices * (0.5 + 1 / 64 + 1 / 4096)


# --- a step ---------------------------------------------------------------------------------------------------------


def really_kept_bytes(architecture: str, checkpointing: bool, lengths: list[int]) -> int:
    """Run a real model and count the storages that autograd saves, each once, without weights and the head's."""
    model = tiny_model(architecture).train()  # type: ignore[arg-type]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and tensor.dtype.is_floating_point:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    packed = PackedRows.lay([row(str(n), n, 2) for n in lengths])
    with takes_packs(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_decoder()(  # type: ignore[operator]
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            row_lengths=packed.row_lengths,
            use_cache=False,
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "baichuan2", "baichuan2_rope"])
def test_the_trace_finds_what_autograd_really_keeps(architecture: str) -> None:
    lengths = [64, 96]
    config = tiny_config(architecture)
    traced = trace_step(meta_model(config, method="full", dtype=torch.float32), lengths, 4)
    kept = really_kept_bytes(architecture, False, lengths)
    if architecture == "baichuan2":  # the bias of ALiBi is held by attention itself
        kept += config.num_attention_heads * max(lengths) ** 2 * 4
    assert traced.saved_bytes == pytest.approx(kept, rel=0.01)


def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    def saved(num_layers: int) -> int:
        config = tiny_config(num_layers=num_layers)
        model = meta_model(config, method="full", dtype=torch.float32, gradient_checkpointing=True)
        return trace_step(model, [100, 60], 4).saved_bytes

    assert saved(5) - saved(3) == 2 * 160 * 64 * 4


def test_all_gradients_are_there_in_the_end_and_from_the_start_of_a_later_pack() -> None:
    config = tiny_config()
    gradients = 4 * model_size(meta_model(config, method="full", dtype=torch.float32), "full").num_parameters
    first = trace_step(meta_model(config, method="full", dtype=torch.float32), [50], 20)
    assert {0, gradients} <= {moment.gradients for moment in first.moments}
    later = trace_step(meta_model(config, method="full", dtype=torch.float32), [50], 20, has_gradients=True)
    assert {moment.gradients for moment in later.moments} == {gradients}
    at_start = max(sum(moment) for moment in first.moments if moment.gradients == 0)
    assert max(sum(moment) for moment in later.moments) >= at_start + gradients


def test_the_head_holds_no_more_than_two_chunks_of_logits_however_many_positions() -> None:
    config = tiny_config(vocab_size=8000)

    def head(num_supervised: int) -> int:
        traced = trace_step(meta_model(config, method="full", dtype=torch.float32), [3000], num_supervised)
        return max(moment.head for moment in traced.moments)

    chunk = 512 * 8000 * 4
    assert chunk < head(512) < head(1024) < 4 * chunk, "a chunk goes when the next one's logits are there"
    # beyond that, what is kept are the gradients of hidden states, and a loss for each position
    assert head(2048) - head(1024) == pytest.approx(1024 * (64 * 4 + 4), rel=0.05)


def test_the_bias_of_alibi_is_that_of_the_longest_row_once_for_all_layers() -> None:
    def saved(*lengths: int) -> int:
        model = meta_model(tiny_config("baichuan2"), method="full", dtype=torch.float32)
        return trace_step(model, lengths, 4).saved_bytes

    assert saved(256) - saved(128, 128) == 5 * (256**2 - 128**2) * 4, "5 heads"


def test_the_normalised_weight_of_a_head_is_counted() -> None:
    weight_bytes = 50_000 * 64 * 4
    config = tiny_config("baichuan2_rope", vocab_size=50_000)
    traced = trace_step(meta_model(config, method="lora", dtype=torch.float32), [20], 1)
    assert 1 <= max(moment.head for moment in traced.moments) / weight_bytes < 1.1
    plain = trace_step(meta_model(tiny_config(vocab_size=50_000), method="lora", dtype=torch.float32), [20], 1)
    assert max(moment.head for moment in plain.moments) / weight_bytes < 0.1


def test_many_rows_are_traced_as_four_with_the_same_result() -> None:
    config = tiny_config()
    many, four = (
        trace_step(meta_model(config, method="full", dtype=torch.float32), lengths, 40)
        for lengths in ([30] * 8, [30, 30, 30, 150])
    )
    assert many == four
    other = trace_step(meta_model(config, method="full", dtype=torch.float32), [30, 30, 30, 151], 40)
    assert other != four


def test_products_in_bf16_keep_copies_of_the_weights() -> None:
    config = tiny_config()
    plain = trace_step(meta_model(config, method="full", dtype=torch.float32), [64], 4)
    mixed = trace_step(meta_model(config, method="full", dtype=torch.float32), [64], 4, autocast=torch.bfloat16)
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert max(moment.weight_copies for moment in plain.moments) == 0
    assert max(moment.weight_copies for moment in mixed.moments) >= 2 * matrices


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharding", "weights", "gathered", "gradients", "optimizer"),
    [
        ("none", 4000, 4000, 4000, 8000),  # DDP's buckets hold the gradients once more
        ("zero1", 4000, 0, 4000, 2000),
        ("zero2", 4000, 0, 1000 + 300, 2000),
        ("zero3", 1000, 300, 1000 + 300, 2000),
        ("fsdp2", 1000, 600, 1000 + 300, 2000),
    ],
)
def test_each_stage_divides_what_it_says(
    sharding: str, weights: int, gathered: int, gradients: int, optimizer: int
) -> None:
    moment = Moment(gradients=4000, activations=500, attention=50, head=70, weight_copies=200, working=30)
    trace = StepTrace(moments=(moment,), saved_bytes=550)
    found = divide(
        SIZE, [trace], method="full", gradient_checkpointing=False, sharding=sharding, num_devices=4, library_bytes=9
    )
    assert (found.weights_bytes, found.gathered_bytes) == (weights, gathered)
    assert (found.gradients_bytes, found.optimizer_bytes) == (gradients, optimizer)
    assert found.total_bytes == weights + gathered + gradients + optimizer + 500 + 50 + 70 + 200 + 30 + 9


def test_deepspeed_holds_a_mixed_model_in_16_bits_and_divides_its_copy_in_fp32() -> None:
    def by_sharding(dtype: str) -> dict[str, MemoryEstimate]:
        config = TrainConfig(dtype=dtype, gradient_checkpointing=True, max_length_tokens=64)  # type: ignore[arg-type]
        found = estimate(config, tiny_config("baichuan2"), rows(*[60] * 16), num_devices=2, speed=SPEED, methods=())
        return {memory.sharding: memory for memory in found.others}

    count = sum(weights.numel() for weights in tiny_model("baichuan2").parameters())
    mixed, plain = by_sharding("bfloat16"), by_sharding("float32")
    for sharding, parts in (("zero1", 1), ("zero2", 1), ("zero3", 2)):
        assert mixed[sharding].weights_bytes == count * 2 // parts
        assert mixed[sharding].optimizer_bytes == count * 12 // 2
        assert mixed[sharding].weight_copies_bytes == 0
        assert plain[sharding].weights_bytes == count * 4 // parts
        assert plain[sharding].optimizer_bytes == count * 8 // 2
    assert mixed["fsdp2"].weights_bytes == mixed["none"].weights_bytes // 2 == count * 4 // 2
    assert mixed["none"].weight_copies_bytes > 0
    assert 2 * mixed["zero1"].gradients_bytes == mixed["none"].gradients_bytes == count * 4


def test_the_fullest_moment_is_chosen_after_the_gradients_are_divided() -> None:
    begins = Moment(gradients=0, activations=3000, attention=0, head=0, weight_copies=0, working=0)
    ends = Moment(gradients=4000, activations=10, attention=0, head=0, weight_copies=0, working=0)
    traces = [StepTrace(moments=(begins, ends), saved_bytes=0)]
    whole = divide(SIZE, traces, method="full", gradient_checkpointing=False)
    shared = divide(SIZE, traces, method="full", gradient_checkpointing=False, sharding="zero2", num_devices=8)
    assert (whole.gradients_bytes, whole.activations_bytes) == (4000, 10)
    assert (shared.gradients_bytes, shared.activations_bytes) == (300, 3000)


def test_a_4_bit_layer_is_widened_while_it_is_used() -> None:
    trace = StepTrace(moments=(Moment(0, 0, 0, 0, 0, 7),), saved_bytes=0)
    found = divide(SIZE, [trace], method="qlora", gradient_checkpointing=False, compute_bytes=2)
    assert found.working_bytes == 7 + 50 * 2


def test_saving_is_the_fullest_moment_where_a_step_takes_less() -> None:
    trace = StepTrace(moments=(Moment(10, 20, 0, 0, 0, 0),), saved_bytes=0)
    step = divide(SIZE, [trace], method="full", gradient_checkpointing=False, library_bytes=5, saving_bytes=35)
    assert (step.gradients_bytes, step.activations_bytes, step.library_bytes) == (10, 20, 5)
    saving = divide(SIZE, [trace], method="full", gradient_checkpointing=False, library_bytes=5, saving_bytes=36)
    assert (saving.gradients_bytes, saving.activations_bytes, saving.library_bytes) == (0, 0, 36)
    assert saving.total_bytes == 4000 + 8000 + 36


# --- work and time --------------------------------------------------------------------------------------------------


def test_the_work_is_counted_as_training_goes_through_it() -> None:
    config = TrainConfig(batch_size=2, gradient_accumulation=2, max_length_tokens=50, num_epochs=3)
    encoded = rows(10, 20, 30, 40, 50)
    encoded = dataclasses.replace(encoded, dropped=(Dropped(id="甲", stage="encode", reason="too_long"),))
    work = workload(config, encoded)
    packs: list[list[int]] = []
    order = RowOrder(5, 2, seed=0)
    for epoch in range(3):
        order.set_epoch(epoch)
        found = [[pack.num_tokens for pack in lay_in_packs([encoded.sequences[i] for i in b], 50)] for b in order]
        packs += found
    assert (work.num_rows, work.dropped) == (5, (("too_long", 1),))
    assert (work.num_tokens, work.num_supervised) == (150, 75)
    assert work.num_packs == sum(len(batch) for batch in packs[:3])
    assert (work.steps_per_epoch, work.num_steps) == (2, 6), "three batches make a whole step and a half one"
    firsts = [batch[0] for number, batch in enumerate(packs) if number % 3 != 1]
    assert work.largest_first.num_tokens == max(firsts)
    laters = [tokens for batch in packs for tokens in batch[1:]] + [batch[0] for batch in packs[1::3]]
    assert work.largest_later is not None and work.largest_later.num_tokens == max(laters)
    assert work.sum_squared_lengths == 100 + 400 + 900 + 1600 + 2500


def test_devices_share_each_batch() -> None:
    config = TrainConfig(batch_size=2, max_length_tokens=50)
    one, two = (workload(config, rows(*[10] * 8), num_devices=count) for count in (1, 2))
    assert (one.steps_per_epoch, two.steps_per_epoch) == (4, 2)
    assert one.largest_first.num_tokens == two.largest_first.num_tokens == 20
    assert workload(dataclasses.replace(config, max_steps=3), rows(*[10] * 8)).num_steps == 3


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_number_of_steps_is_that_of_a_real_run(tmp_path: Path, accumulation: int) -> None:
    model = save_tiny(tmp_path / "模型", "llama")
    config = TrainConfig(
        model=str(model),
        output_dir=tmp_path / "runs",
        batch_size=2,
        gradient_accumulation=accumulation,
        max_length_tokens=256,
        num_epochs=2,
    )
    data = examples(9)
    found = dry_run(config, data, [], Console(quiet=True))
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"
    result = train(config, data, [], Console(quiet=True))
    steps = [line["step"] for line in read_metrics(result.folder) if "loss" in line]
    assert max(steps) == found.workload.num_steps == 2 * math.ceil(math.ceil(9 / 2) / accumulation)


def test_operations_are_two_a_weight_and_a_product() -> None:
    work = dataclasses.replace(
        workload(TrainConfig(), rows(10)), num_tokens=100, num_supervised=30, sum_squared_lengths=2000
    )
    size = dataclasses.replace(SIZE, adapter_parameters=40)
    full = flop_per_epoch(SIZE, work, 8, method="full", recomputes=False)
    assert full == 2 * 100 * 3 * 700 + 2 * 30 * 3 * 100 + 2 * 2 * 2000 * 8 * 3.5
    lora = flop_per_epoch(size, work, 8, method="lora", recomputes=True)
    assert lora == 2 * 100 * (3 * 700 + 4 * 40) + 2 * 30 * 2 * 100 + 2 * 2 * 2000 * 8 * 4.5


def test_time_is_shared_by_devices_but_for_the_optimizer() -> None:
    work = dataclasses.replace(workload(TrainConfig(), rows(10)), steps_per_epoch=5, num_steps=10)
    one, two = (run_time_s(1e9, SIZE, work, SPEED, count) for count in (1, 2))
    optimizer_s = 10 * 1000 * 28 / 1e9
    assert one - optimizer_s == pytest.approx(2 * (two - optimizer_s))
    assert one - optimizer_s >= 2.0, "two epochs of 1 s of products"


# --- what fits, and what is said ------------------------------------------------------------------------------------


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the libraries' part, beside which a tiny model's memory is nothing."""
    for name in ("LIBRARY_BYTES", "SAVING_BYTES"):
        monkeypatch.setattr(f"deft.estimate.estimate.{name}", dict.fromkeys(("cpu", "cuda", "mps"), 0))


def chosen_bytes(**changes: object) -> int:
    config = TrainConfig(max_length_tokens=2048, pack_length_tokens=2048, batch_size=8, **changes)  # type: ignore[arg-type]
    return estimate(config, tiny_config(), rows(*[200] * 8), speed=SPEED, methods=()).chosen.total_bytes


def advice_for(limit: int, **changes: object) -> str | None:
    config = TrainConfig(max_length_tokens=2048, pack_length_tokens=2048, batch_size=8, **changes)  # type: ignore[arg-type]
    encoded, methods = rows(*[200] * 8), ("full", "lora")
    found = estimate(config, tiny_config(), encoded, speed=SPEED, methods=methods, device_memory_bytes=limit)
    return found.advice


def test_advice_names_the_smallest_change_that_fits_and_it_does(no_libraries: None) -> None:
    plain, checkpointed = chosen_bytes(), chosen_bytes(gradient_checkpointing=True)
    assert advice_for(plain) is None
    advice = advice_for(plain - 1)
    assert advice is not None and "--pack-length-tokens" in advice
    length = int(advice.split()[advice.split().index("--pack-length-tokens") + 1])
    changed = TrainConfig(max_length_tokens=length, pack_length_tokens=length, batch_size=8)
    assert estimate(changed, tiny_config(), rows(*[200] * 8), speed=SPEED, methods=()).chosen.total_bytes < plain
    assert checkpointed < plain
    assert "no setting fits" in (advice_for(1000) or "")


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("1.5gb", 1_500_000_000), ("512M", 512 * 10**6), ("7", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "八十GB", "80XB", "-3GB", "0GB", "GB"])
def test_a_size_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="not a valid memory size") as caught:
        parse_bytes(text)
    assert "80GB" in str(caught.value.fix)


def test_numbers_are_shown_in_the_unit_that_fits() -> None:
    assert [shown_bytes(n) for n in (999, 12_345_678, 3_340_000_000)] == ["1 kB", "12 MB", "3.34 GB"]
    assert [shown_time(s) for s in (40, 600, 20_000)] == ["40 s", "10 min", "5.6 h"]


def test_the_tables_say_what_a_run_takes_without_reading_weights(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "qwen3")
    weights = model / "model.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    screen = Console(width=120, record=True, quiet=False, file=(tmp_path / "out.txt").open("w"))
    long = Example.create(
        [Message(role="user", content="长" * 400), Message(role="assistant", content="太长了。")], ability="阅读"
    )
    config = TrainConfig(model=str(model), max_length_tokens=256, num_epochs=2, batch_size=4)
    found = dry_run(config, [*examples(6), long], [], screen, num_devices=4, device_memory="1MB")
    text = screen.export_text()
    assert "dropped: too_long" in text
    assert f"{found.size.num_parameters:,} parameters" in text
    for words in ("ZeRO-1", "ZeRO-3", "FSDP2", "QLoRA (4-bit base)", "an estimate", "it does not fit in 1 MB"):
        assert words in text, words
    assert found.chosen in found.others
    assert len(found.others) == 8 * 5, "four methods, with and without checkpointing, five ways to share"
    assert len({(m.method, m.gradient_checkpointing, m.sharding) for m in found.others}) == 40


def test_a_dry_run_needs_neither_weights_nor_the_device_it_plans_for(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "模型", "baichuan2")
    (model / "model.safetensors").unlink()
    config = TrainConfig(model=str(model), method="qlora", dtype="bfloat16", output_dir=tmp_path / "runs")
    found = dry_run(config, examples(6), [], Console(quiet=True), device_memory="1GB")
    assert found.chosen.method == "qlora"
    assert found.advice is None
    with pytest.raises(UserError, match="it lacks its weights"):
        train(dataclasses.replace(config, method="lora"), examples(6), [], Console(quiet=True))


SHARED = [
    pytest.param({}, "none", marks=pytest.mark.slow),
    ({"fsdp": "true", "fsdp_config": "configs/fsdp2.json"}, "fsdp2"),
    pytest.param({"deepspeed": "configs/zero2.json"}, "zero2", marks=pytest.mark.slow),
    pytest.param({"deepspeed": {"zero_optimization": {"stage": 3}}}, "zero3", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("trainer", "sharding"), SHARED)
def test_the_way_that_the_settings_share_a_model_is_the_chosen_one(
    trainer: dict[str, object], sharding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    model = save_tiny(tmp_path / "model", "baichuan2")
    screen = Console(width=120, record=True, file=(tmp_path / "out.txt").open("w"))
    config = TrainConfig(model=str(model), dtype="bfloat16", trainer=trainer | {"adam_epsilon": 1e-7})
    found = dry_run(config, examples(16), [], screen, num_devices=4, device_memory="80GB")
    assert (found.chosen.sharding, found.chosen.num_devices) == (sharding, 4)
    text = screen.export_text()
    assert "not counted: the settings under `trainer` (adam_epsilon)" in text
    assert ("and the weights in fp32" in text) == sharding.startswith("zero")
    assert f"{'one copy on each of 4' if sharding == 'none' else NAMES[sharding]}" in text.partition("weights")[0]
    alone = estimate(config, tiny_config(), rows(60), speed=SPEED, methods=())
    assert alone.chosen.sharding == "none"


@pytest.mark.slow
def test_advice_is_for_the_way_the_model_is_shared(no_libraries: None) -> None:
    """A limit that whole copies miss by far: what shards are told to shorten would be no help to them."""

    def found(limit: int | None, pack_length_tokens: int) -> Estimate:
        lengths = {"max_length_tokens": 128, "pack_length_tokens": pack_length_tokens}
        config = TrainConfig(batch_size=8, trainer={"fsdp": True}, **lengths)  # type: ignore[arg-type]
        settings = {"num_devices": 4, "speed": SPEED, "methods": (), "device_memory_bytes": limit}
        return estimate(config, tiny_config(num_layers=8, hidden_size=320), rows(*[60] * 32), **settings)  # type: ignore[arg-type]

    limit = found(None, 512).chosen.total_bytes - 1
    whole = next(memory for memory in found(None, 128).others if memory.sharding == "none")
    assert whole.total_bytes > 1.2 * limit
    advice = found(limit, 512).advice
    assert advice is not None and advice.startswith("--pack-length-tokens ")
    assert found(limit, int(advice.split()[1])).advice is None


def test_the_command_prints_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "model", "llama")
    line = '{"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]}\n'
    (tmp_path / "数据.jsonl").write_text(line, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["train", "--model", "./model", "--train", "数据.jsonl"]
    run = [*arguments, "--dry-run", "--device-memory", "80GB"]
    assert run_or_explain(lambda: app(run, exit_on_error=False, result_action="return_value")) == 0
    shown = capsys.readouterr().out
    assert "it fits in 80.00 GB" in shown and "optimizer steps in all" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    wrong = [*arguments, "--devices", "2"]
    assert run_or_explain(lambda: app(wrong, exit_on_error=False, result_action="return_value")) == 2
    assert "add --dry-run" in capsys.readouterr().err


def test_an_adapter_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    config = TrainConfig(model=str(model), output_dir=tmp_path / "runs", method="lora", num_epochs=1)
    result = train(config, examples(2), [], Console(quiet=True))
    with pytest.raises(UserError, match="adapter") as caught:
        dry_run(TrainConfig(model=str(result.best)), examples(2), [], Console(quiet=True))
    assert "base model" in str(caught.value.fix)
