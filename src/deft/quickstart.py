"""The whole path in one command: audit, measure, fine-tune, measure again, and show what changed.

In: the example data of one language and a small model. Out: a run folder with a checkpoint to talk to, the picture of
what each ability gained, and a report. Everything is kept as it is made, so that the command takes up what exists.
"""

import dataclasses
import gc
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from deft.errors import UserError
from deft.evaluate.interval import Change, paired_changes
from deft.evaluate.loss import OVERALL, EvaluatedRow, read_rows_kept, row_losses_kept, write_rows
from deft.report import (
    Lang,
    ReplyPair,
    Results,
    changes_table,
    from_json,
    percent,
    readable_time,
    shown_value,
    to_json,
    write_report,
)
from deft.rundir import check_writable, fingerprint, remove, versions, write_json
from deft.train.config import TrainConfig
from deft.types import Example, Message

if TYPE_CHECKING:
    from deft.model.load import LoadedModel
    from deft.prompt.format import ChatFormat

EXAMPLES = Path("examples/abilities")
FORMAT = 1
"""Raised when what a quickstart does or stores changes, so that older runs are not taken for finished ones."""
FILE_NAME = "quickstart.json"
PART_FOLDER = ".quickstart"
"""In the folder of runs: what was measured before a run folder exists."""
NUM_STAGES = 6
SAMPLED_BYTES = 1 << 20

PROMPTS: dict[str, tuple[str, str]] = {
    "en": (
        "Which planet is closest to the Sun?\nA. Venus\nB. Mercury\nC. Mars\nD. Earth",
        "Write a two-sentence story about an umbrella that is afraid of rain.",
    ),
    "zh": (
        "离太阳最近的行星是哪一颗？\nA. 金星\nB. 水星\nC. 火星\nD. 地球",
        "用两句话讲一个怕雨的雨伞的故事。",
    ),
}
"""Asked before and after: a question as in an exam, and a creative one; neither is in the data."""

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "welcome": "Fine-tune a small model on a few hundred rows, and see what each ability gains.",
        "model": "Model",
        "data": "Data",
        "before": "Loss on held-out rows, before",
        "training": "Fine-tuning",
        "after": "Loss on held-out rows, after",
        "replies": "Replies and report",
        "pulling": "{model} is not here yet: fetching it once",
        "model_ready": "{model} · {parameters} weights",
        "weak_language": (
            "Note: {model} hardly knows Chinese; these data are meant for Chinese-capable models (such as qwen3-0.6b), "
            "and what follows only shows the path."
        ),
        "no_leak": "no test or validation row occurs in the training rows ({held_out} checked)",
        "rows": "rows",
        "loss_before": "{rows} rows · {loss:.3f} nats per token",
        "kept": "{rows} of {all} rows were measured earlier",
        "plan": "every weight · {rows} rows · {steps} steps of {batch} rows · learning rate {rate:g}",
        "resuming": "an unfinished quickstart is there: going on with it",
        "trained_already": "trained in an earlier start: {folder}",
        "asked": "asked",
        "was": "before",
        "now": "after",
        "files": "report   {report}\npicture  {picture}",
        "chat": "talk to it in the terminal",
        "page": "talk to it in the browser",
        "audit": "look at your own data",
        "train": "train on your own data",
        "next": "Next",
        "summary": (
            "Loss on {held_out} held-out rows: {before:.3f} → {after:.3f} nats per token, {percent} "
            "(95 % interval {low} to {high}), clear of zero in {clear} of {abilities} abilities"
        ),
        "cost": "{rows} training rows · {time} in all",
        "cost_resumed": "{rows} training rows · {time} since it was taken up again",
        "resumed": "{stage} (what was left)",
        "stored": "A finished quickstart with this model, data and settings is there: {folder}",
        "again": "to run it again: deft quickstart{lang} --again",
        "interrupted": "Stopped. What is done is kept: deft quickstart{lang} goes on from here.",
    },
    "zh": {
        "welcome": "用几百条数据微调一个小模型，看看每项能力各提高多少。",
        "model": "模型",
        "data": "数据",
        "before": "训练前，留出数据上的损失",
        "training": "微调",
        "after": "训练后，留出数据上的损失",
        "replies": "回答与报告",
        "pulling": "还没有 {model}：下载一次即可",
        "model_ready": "{model} · {parameters} 个权重",
        "weak_language": (
            "注意：{model} 几乎不懂中文；这些数据是为懂中文的模型（如 qwen3-0.6b）准备的，以下结果仅演示流程。"
        ),
        "no_leak": "训练数据中没有任何测试或验证数据（已检查 {held_out} 条）",
        "rows": "条",
        "loss_before": "{rows} 条 · 每词元 {loss:.3f} 纳特",
        "kept": "{all} 条中有 {rows} 条此前已测过",
        "plan": "训练全部权重 · {rows} 条 · {steps} 步，每步 {batch} 条 · 学习率 {rate:g}",
        "resuming": "发现未完成的 quickstart：接着训练",
        "trained_already": "此前已训练完成：{folder}",
        "asked": "问题",
        "was": "训练前",
        "now": "训练后",
        "files": "报告  {report}\n图    {picture}",
        "chat": "在终端里与它对话",
        "page": "在浏览器里与它对话",
        "audit": "检查你自己的数据",
        "train": "用你自己的数据训练",
        "next": "接下来",
        "summary": (
            "{held_out} 条留出数据上的损失：每词元 {before:.3f} → {after:.3f} 纳特，{percent}"
            "（95% 区间 {low} 至 {high}），{abilities} 项能力中有 {clear} 项明确不为零"
        ),
        "cost": "{rows} 条训练数据 · 共用时 {time}",
        "cost_resumed": "{rows} 条训练数据 · 接着做以来用时 {time}",
        "resumed": "{stage}（剩余部分）",
        "stored": "已有用同样模型、数据和设置完成的 quickstart：{folder}",
        "again": "重新运行：deft quickstart{lang} --again",
        "interrupted": "已停止，已完成的部分都已保存：运行 deft quickstart{lang} 即可接着做。",
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a quickstart is to do; `key` changes with anything that could change its result."""

    lang: Lang
    config: TrainConfig
    test: Path
    max_train_rows: int | None
    num_valid_rows: int | None
    max_test_rows: int | None
    max_new_tokens: int
    key: str = ""

    @property
    def runs(self) -> Path:
        """The folder in which runs are made."""
        return self.config.output_dir

    @property
    def parts(self) -> Path:
        """Where measurements are kept until there is a run folder."""
        return self.runs / PART_FOLDER / self.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The examples of the three splits; of each ability a first part where the plan says so."""

    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """What is known when the training starts: the model's losses and replies, and what identifies the run."""

    rows: Sequence[EvaluatedRow]
    replies: Sequence[str]
    identity: Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class Teller:
    """Speaks to the user in one language, and counts stages and their time; `taken_up` are stages begun earlier."""

    console: Console
    lang: Lang
    started_at: float = field(default_factory=time.monotonic)
    stage_times_s: dict[str, float] = field(default_factory=dict)
    taken_up: set[str] = field(default_factory=set)

    def text(self, name: str, **values: Any) -> str:
        """Return a text of the table, filled in."""
        return TEXTS[self.lang][name].format(**values)

    def say(self, name: str, *, style: str = "", **values: Any) -> None:
        """Print a text of the table."""
        self.console.print(f"  {self.text(name, **values)}", style=style, markup=False, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print the heading of a stage, and note how long it took."""
        began_at = time.monotonic()
        number = len(self.stage_times_s) + 1
        self.console.print()
        self.console.rule(f"[bold]{number}/{NUM_STAGES}  {self.text(name)}[/]", align="left", style="dim")
        yield
        self.stage_times_s[name] = time.monotonic() - began_at

    def named_times_s(self) -> dict[str, float]:
        """Return the seconds of each stage under its name in the user's language."""
        names = {stage: self.text(stage) for stage in self.stage_times_s}
        names |= {stage: self.text("resumed", stage=names[stage]) for stage in self.taken_up}
        return {names[stage]: seconds for stage, seconds in self.stage_times_s.items()}

    def total_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started_at


def quickstart(
    *,
    model: str = "smollm2-135m",
    lang: Lang = "en",
    runs: Path = Path("runs"),
    console: Console | None = None,
    again: bool = False,
    num_epochs: int = 1,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    max_length_tokens: int = 512,
    max_train_rows: int | None = None,
    num_valid_rows: int | None = 50,
    max_test_rows: int | None = None,
    max_new_tokens: int = 60,
) -> Path:
    """Run the whole path on the example data of `lang`, or take up what exists of it; return the run's folder.

    A finished quickstart with the same model, data and settings is shown, not repeated, unless `again` is set. The
    numbers of rows are upper limits, spread evenly over the abilities; None takes all.

    Raises:
        UserError: if the example data are not in the current folder, or a setting or the model is wrong.
        KeyboardInterrupt: after Ctrl-C, when what is done has been kept and the user told so.
    """
    if lang not in TEXTS:
        raise UserError("quickstart has no example data in this language", got=lang, fix="lang is en or zh")
    folder = example_folder(lang)
    config = TrainConfig(
        model=model,
        train=(folder / "full",),
        valid=(folder / "valid",),
        output_dir=runs,
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        end_learning_rate=learning_rate / 10,
        max_length_tokens=max_length_tokens,
        save_total_limit=1,
    )
    plan = Plan(
        lang=lang,
        config=config,
        test=folder / "test",
        max_train_rows=max_train_rows,
        num_valid_rows=num_valid_rows,
        max_test_rows=max_test_rows,
        max_new_tokens=max_new_tokens,
    )
    tell = Teller(console=console or Console(), lang=lang)
    try:
        return take_up(plan, tell, again=again)
    except KeyboardInterrupt:
        tell.console.print()
        tell.say("interrupted", style="bold", lang=lang_flag(lang))
        raise


def take_up(plan: Plan, tell: Teller, *, again: bool) -> Path:
    """Show a finished quickstart, or run one, with whatever exists of it."""
    from deft.model.known import find_known, is_present

    known = find_known(plan.config.model)
    if (known is None or is_present(known)) and not again:
        keyed = with_key(plan)
        if (folder := find_finished(keyed)) is not None:
            show_finished(folder, keyed, tell)
            return folder
    return run(plan, tell, again=again)


def run(plan: Plan, tell: Teller, *, again: bool) -> Path:
    """Go through all stages; what exists of them is taken up."""
    check_writable(plan.runs)
    tell.console.print(tell.text("welcome"), style="bold", highlight=False)
    with tell.stage("model"):
        bring_model(plan, tell)
        plan = with_key(plan)
        loaded, chat_format = load(plan, tell)
    with tell.stage("data"):
        rows = read_rows(plan)
        show_data(rows, chat_format, plan, tell)
    with tell.stage("before"):
        before = measure_before(plan, loaded, chat_format, rows, tell)
    del loaded, chat_format
    gc.collect()
    with tell.stage("training"):
        folder = trained_folder(plan, rows, before, tell, again=again)
    with tell.stage("after"):
        loaded, chat_format = load_with_format(folder / "best")
        after = losses(plan, loaded, chat_format, rows.test, file=folder / "rows_after.jsonl", tell=tell)
        changes = paired_changes(before.rows, after)
        tell.console.print(Padding(changes_table(changes, plan.lang), (1, 0, 0, 2)))
    with tell.stage("replies"):
        answers = replies(plan, loaded, chat_format)
        pairs = [
            ReplyPair(prompt=prompt, before=first, after=second)
            for prompt, first, second in zip(PROMPTS[plan.lang], before.replies, answers, strict=True)
        ]
        show_replies(pairs, tell)
    results = collect(plan, folder, changes, pairs, before=before, tell=tell)
    finish(plan, folder, results, before, tell)
    return folder


# --- what is there ----------------------------------------------------------------------------------------------


def example_folder(lang: Lang) -> Path:
    """Return the folder of the example data of a language, relative to the current folder.

    Raises:
        UserError: if it is not there.
    """
    folder = EXAMPLES / lang / "curated"
    missing = [split for split in ("full", "valid", "test") if not (folder / split).is_dir()]
    if missing:
        raise UserError(
            "the example data are not in the current folder",
            got=", ".join(f"{folder / split}" for split in missing),
            fix="run this in the folder that holds deft's `examples` (the repository)",
        )
    return folder


def with_key(plan: Plan) -> Plan:
    """Return the plan with its key filled in; the model must be here."""
    return dataclasses.replace(plan, key=plan_key(plan))


def plan_key(plan: Plan) -> str:
    """Return a fingerprint of the model, the data, the settings and the prompts; nothing here loads torch."""
    from deft.data.files import find_files

    settings = dataclasses.asdict(plan)
    for name in ("output_dir", "resume_training"):
        del settings["config"][name]
    files = find_files([*plan.config.train, *plan.config.valid, plan.test])
    data = [part for file in files for part in (file.as_posix(), file.read_bytes())]
    text = json.dumps([FORMAT, settings | {"key": ""}, PROMPTS[plan.lang]], default=str, sort_keys=True)
    return fingerprint([text, *data, model_fingerprint(plan.config.model)])


def model_fingerprint(name: str) -> str:
    """Return a fingerprint of a model's files: names, sizes, and the first and last megabyte of each."""
    from deft.model.load import find_folder

    parts: list[str | bytes] = []
    for file in sorted(path for path in find_folder(name).iterdir() if path.is_file()):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(SAMPLED_BYTES)
            stream.seek(max(size - SAMPLED_BYTES, 0))
            parts += [file.name, str(size), head, stream.read()]
    return fingerprint(parts)


def find_finished(plan: Plan) -> Path | None:
    """Return the newest run folder that holds a finished quickstart of this plan, with its checkpoint."""
    for file in sorted(plan.runs.glob(f"*/{FILE_NAME}"), reverse=True):
        if not file.parent.is_symlink() and read_json(file).get("key") == plan.key and (file.parent / "best").exists():
            return file.parent
    return None


def find_run(plan: Plan, identity: Mapping[str, Any], *, finished: bool) -> Path | None:
    """Return the newest training run with this identity that is finished, or not finished."""
    for file in sorted(plan.runs.glob("*/run.json"), reverse=True):
        stored = read_json(file)
        same = all(stored.get(name) == value for name, value in identity.items())
        if same and not file.parent.is_symlink() and stored.get("finished") is finished:
            return file.parent
    return None


def newest_unfinished(runs: Path) -> Path | None:
    """Return the run that `resume_training` would take up: the newest unfinished one, whatever it is."""
    files = sorted(runs.glob("*/run.json"), reverse=True)
    found = (file.parent for file in files if not file.parent.is_symlink() and read_json(file).get("finished") is False)
    return next(found, None)


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one where the file is damaged: it is then no run to take up."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_rows(plan: Plan) -> Rows:
    """Read the three splits."""
    from deft.data.read import read_examples

    return Rows(
        train=spread(read_examples(plan.config.train).examples, plan.max_train_rows),
        valid=spread(read_examples(plan.config.valid).examples, plan.num_valid_rows),
        test=spread(read_examples([plan.test]).examples, plan.max_test_rows),
    )


def spread(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """Return at most `limit` examples, the first of every ability in turn, in their order."""
    if limit is None or limit >= len(examples):
        return examples
    place_in_ability: dict[str | None, int] = {}
    ranked = []
    for index, example in enumerate(examples):
        place = place_in_ability.setdefault(example.ability, 0)
        place_in_ability[example.ability] += 1
        ranked.append((place, index))
    return [examples[index] for index in sorted(index for _, index in sorted(ranked)[:limit])]


# --- the stages -------------------------------------------------------------------------------------------------


def bring_model(plan: Plan, tell: Teller) -> None:
    """Fetch the model, if it is one that deft knows and not here yet."""
    from deft.model.known import find_known, is_present
    from deft.model.pull import pull

    known = find_known(plan.config.model)
    if known is not None and not is_present(known):
        tell.say("pulling", model=plan.config.model)
        pull(plan.config.model, progress=lambda line: tell.console.print(f"  {escape(line)}", highlight=False))


def load(plan: Plan, tell: Teller) -> "tuple[LoadedModel, ChatFormat]":
    """Load the model to start from, and say what it is."""
    from deft.model.known import find_known, format_parameters

    loaded, chat_format = load_with_format(plan.config.model)
    parameters = format_parameters(sum(weights.numel() for weights in loaded.model.parameters()))
    tell.say("model_ready", model=shown_value(plan.config.model), parameters=parameters)
    known = find_known(plan.config.model)
    if plan.lang == "zh" and known is not None and "zh" not in known.languages:
        tell.say("weak_language", style="yellow", model=known.alias)
    return loaded, chat_format


def load_with_format(name: str | Path) -> "tuple[LoadedModel, ChatFormat]":
    """Load a model, and the chat format that training on it uses."""
    from deft.model.load import load_model
    from deft.train.run import prepare_chat_format

    loaded = load_model(name, dtype="float32")
    chat_format, _ = prepare_chat_format(loaded, "auto")
    return loaded, chat_format


def show_data(rows: Rows, chat_format: "ChatFormat", plan: Plan, tell: Teller) -> None:
    """Print the audit of the training rows, and check that nothing held out is among them.

    Raises:
        UserError: if a held-out row is, or if training would be pointless.
    """
    from deft.data.audit import audit, leaks
    from deft.data.show import audit_table
    from deft.prompt.format import encode_example

    result = audit(
        rows.train,
        encode=lambda row: encode_example(row, chat_format, max_length_tokens=plan.config.max_length_tokens),
        max_length_tokens=plan.config.max_length_tokens,
        end_of_turn_ids=chat_format.end_of_turn_ids,
    )
    tell.console.print(Padding(audit_table(result), (1, 0, 1, 2)))
    held_out = [*rows.valid, *rows.test]
    if shared := leaks(rows.train, held_out):
        raise UserError(
            f"{len(shared)} held-out rows occur in the training rows, so their loss would prove nothing",
            where=shared[0].held_out.source,
            got=shared[0].held_out.messages[-2].content,
            fix=f"take them out of one of the two; the first is also {shared[0].train.source}",
        )
    if result.stop_reasons:
        fault = "training on this would be pointless or wrong"
        raise UserError(fault, got="; ".join(result.stop_reasons), fix=f"deft data audit {plan.config.train[0]}")
    tell.say("no_leak", style="green", held_out=len(held_out))


def losses(
    plan: Plan,
    loaded: "LoadedModel",
    chat_format: "ChatFormat",
    examples: Sequence[Example],
    *,
    file: Path,
    tell: Teller,
) -> list[EvaluatedRow]:
    """Return the losses of examples; each pack is kept in `file` at once, and what is there is not computed again."""
    from deft.prompt.format import encode_examples

    limit = plan.config.max_length_tokens
    sequences = encode_examples(examples, chat_format, max_length_tokens=limit).sequences
    kept = {row.id for row in read_rows_kept(file)}
    num_missing = sum(row.id not in kept for row in sequences)
    if kept:
        tell.taken_up.add("before" if file.parent == plan.parts else "after")
        tell.say("kept", rows=len(sequences) - num_missing, all=len(sequences))
    with row_bar(tell, num_missing) as advance:
        return row_losses_kept(
            loaded.model, sequences, file=file, pack_length_tokens=limit, on_progress=lambda rows: advance(len(rows))
        )


def measure_before(plan: Plan, loaded: "LoadedModel", chat_format: "ChatFormat", rows: Rows, tell: Teller) -> Before:
    """Measure the untrained model: losses of the test rows and two replies; both are kept as they are made."""
    from deft.prompt.format import encode_examples
    from deft.train.run import run_identity

    limit = plan.config.max_length_tokens
    train, valid = (encode_examples(split, chat_format, max_length_tokens=limit) for split in (rows.train, rows.valid))
    identity = run_identity(plan.config, loaded.path, train, valid)
    evaluated = losses(plan, loaded, chat_format, rows.test, file=plan.parts / "rows_before.jsonl", tell=tell)
    loss = sum(row.nll for row in evaluated) / sum(row.num_supervised for row in evaluated)
    kept = plan.parts / "replies_before.json"
    answers = read_json(kept).get("replies")
    if answers is None:
        answers = replies(plan, loaded, chat_format)
        write_json(kept, {"replies": answers})
    tell.say("loss_before", rows=len(evaluated), loss=loss)
    return Before(rows=evaluated, replies=answers, identity=identity)


@contextmanager
def row_bar(tell: Teller, num_rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over rows where there is a terminal; yield what advances it."""
    if not (tell.console.is_terminal and num_rows):
        yield lambda rows: None
        return
    columns = (TextColumn(" "), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(tell.text("rows")))
    with Progress(*columns, TimeElapsedColumn(), console=tell.console, transient=True) as progress:
        task = progress.add_task("", total=num_rows)
        yield lambda rows: progress.update(task, advance=rows)


def replies(plan: Plan, loaded: "LoadedModel", chat_format: "ChatFormat") -> list[str]:
    """Return the model's greedy replies to the two prompts."""
    from deft.model.generate import Sampling, generate

    prompts = [chat_format.encode_prompt([Message(role="user", content=text)]) for text in PROMPTS[plan.lang]]
    found = generate(
        loaded.model,
        prompts,
        stop_token_ids=chat_format.stop_token_ids,
        settings=Sampling(max_new_tokens=plan.max_new_tokens),
        keep_first_logits=False,
    )
    decode = loaded.tokenizer.decode
    return [str(decode(list(reply.token_ids), skip_special_tokens=True)).strip() for reply in found]


def trained_folder(plan: Plan, rows: Rows, before: Before, tell: Teller, *, again: bool) -> Path:
    """Train, or go on with a training that was interrupted, or return the folder of one that ended."""
    from deft.train.run import train

    done = None if again else find_run(plan, before.identity, finished=True)
    if done is not None and (done / "best").exists():
        tell.say("trained_already", folder=done)
        tell.taken_up.add("training")
        return done
    config = plan.config
    unfinished = find_run(plan, before.identity, finished=False)
    if unfinished is not None and unfinished == newest_unfinished(plan.runs):
        tell.say("resuming")
        tell.taken_up.add("training")
        config = dataclasses.replace(config, resume_training=True)
    else:
        steps = config.num_epochs * math.ceil(before.identity["num_train_rows"] / config.batch_size)
        rate = config.learning_rate
        tell.say("plan", rows=before.identity["num_train_rows"], steps=steps, batch=config.batch_size, rate=rate)
    result = train(config, rows.train, rows.valid, tell.console)
    if not result.finished:
        raise KeyboardInterrupt
    return result.folder


# --- what is shown and kept -------------------------------------------------------------------------------------


def show_replies(pairs: Sequence[ReplyPair], tell: Teller) -> None:
    """Print each prompt with its two replies."""
    from deft.data.show import visible

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for pair in pairs:
        table.add_row(tell.text("asked"), Text(pair.prompt), style="bold")
        table.add_row(tell.text("was"), Text(visible(pair.before, keep="\n") or "–"))
        table.add_row(tell.text("now"), Text(visible(pair.after, keep="\n") or "–"))
        table.add_row("", "")
    tell.console.print(Padding(table, (1, 0, 0, 2)))


def collect(
    plan: Plan,
    folder: Path,
    changes: Mapping[str, Change],
    pairs: Sequence[ReplyPair],
    *,
    before: Before,
    tell: Teller,
) -> Results:
    """Put together what the report shows."""
    from deft.train.record import read_metrics

    metrics = read_metrics(folder)
    settings = {
        name: shown_value(value)
        for name, value in dataclasses.asdict(plan.config).items()
        if name not in ("model", "output_dir", "resume_training", "trainer") and value is not None
        if not (name.startswith("lora_") and plan.config.method == "full")
    }
    return Results(
        model=shown_value(plan.config.model),
        num_train_rows=before.identity["num_train_rows"],
        changes=changes,
        replies=tuple(pairs),
        training=tuple((line["step"], line["loss"]) for line in metrics if "loss" in line),
        validation=tuple((line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line),
        settings=settings,
        versions=versions(),
        fingerprints={
            "train": before.identity["train_rows"],
            "valid": before.identity["valid_rows"],
            "test": fingerprint(sorted(row.id for row in before.rows)),
            "model": before.identity["model"],
            "quickstart": plan.key,
        },
        stage_times_s=tell.named_times_s(),
        next_commands=next_commands(plan, folder, tell, shown=shown_value),
    )


def finish(plan: Plan, folder: Path, results: Results, before: Before, tell: Teller) -> None:
    """Write picture, report and `quickstart.json` (last, as the sign that all is there), and print where to go."""
    from deft.evaluate.figure import draw_abilities

    overall = results.changes[OVERALL]
    title = f"{results.model}, {results.num_train_rows} rows: loss {percent(overall.relative_percent, 'en')}"
    draw_abilities(folder / "abilities.png", results.changes, title=title)
    write_report(folder, results, plan.lang)
    write_rows(folder / "rows_before.jsonl", before.rows)
    for state in folder.glob("checkpoint-*/optimizer.pt"):  # twice the weights, and of use only to go on training
        remove(state)
    stored = {
        "key": plan.key,
        "lang": plan.lang,
        "total_time_s": tell.total_s(),
        "resumed": bool(tell.taken_up),
        "results": to_json(results),
    }
    write_json(folder / FILE_NAME, stored)
    remove(plan.parts)
    say_where_to_go(plan, folder, results, tell, stored=stored)


def show_finished(folder: Path, plan: Plan, tell: Teller) -> None:
    """Show a finished quickstart again; its report is written again where it is missing."""
    stored = read_json(folder / FILE_NAME)
    results = from_json(stored["results"])
    if not (folder / "report.html").exists():
        write_report(folder, results, plan.lang)
    tell.console.print(tell.text("stored", folder=folder), style="bold", markup=False, highlight=False)
    tell.console.print(Padding(changes_table(results.changes, plan.lang), (1, 0, 0, 2)))
    show_replies(results.replies, tell)
    say_where_to_go(plan, folder, results, tell, stored=stored)
    tell.say("again", style="dim", lang=lang_flag(plan.lang))


def say_where_to_go(plan: Plan, folder: Path, results: Results, tell: Teller, *, stored: Mapping[str, Any]) -> None:
    """Print report, next commands, and the result in one line."""
    console, overall = tell.console, results.changes[OVERALL]
    files = tell.text("files", report=folder / "report.html", picture=folder / "abilities.png")
    for line in files.splitlines():
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{tell.text('next')}[/]")
    for command, what in next_commands(plan, folder, tell):
        console.print(f"  {what}\n    [cyan]{escape(command)}[/]", highlight=False, soft_wrap=True)
    abilities = [change for name, change in results.changes.items() if name != OVERALL]
    summary = tell.text(
        "summary",
        held_out=overall.num_rows,
        before=overall.before,
        after=overall.after,
        percent=percent(overall.relative_percent, plan.lang),
        low=percent(overall.relative_low, plan.lang),
        high=percent(overall.relative_high, plan.lang),
        clear=sum(change.is_clear for change in abilities),
        abilities=len(abilities),
    )
    cost_text = "cost_resumed" if stored["resumed"] else "cost"
    cost = tell.text(cost_text, rows=results.num_train_rows, time=readable_time(stored["total_time_s"]))
    mark = "[green]✓[/]" if overall.high < 0 else "[yellow]·[/]"
    console.print(f"\n{mark} {summary} · {cost}", highlight=False, soft_wrap=True)


def next_commands(
    plan: Plan, folder: Path, tell: Teller, *, shown: Callable[[Any], str] = str
) -> tuple[tuple[str, str], ...]:
    """Return what to type next, and what each does; the run is named `latest` while it is.

    `shown` turns a path or a model's name into text: as it is for the terminal, without the machine's folders for a
    report.
    """
    latest = plan.runs / "latest"
    best = (latest if latest.exists() and latest.resolve() == folder.resolve() else folder) / "best"
    run, model = (shlex.quote(shown(value)) for value in (best, plan.config.model))
    return (
        (f"deft chat {run}", tell.text("chat")),
        (f"python chat_gradio.py --model_name_or_path {run}", tell.text("page")),
        (f"deft data audit my_data.jsonl --model {model}", tell.text("audit")),
        (f"deft train --model {model} --train my_data.jsonl", tell.text("train")),
    )


def lang_flag(lang: Lang) -> str:
    """Return the flag that repeats the language, where it is not the default."""
    return "" if lang == "en" else f" --lang {lang}"
