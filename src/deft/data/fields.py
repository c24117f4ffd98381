"""What becomes of the fields of a row that no format uses: known to be harmless, refused by name, or counted.

In: the fields that a format left over. Out: those that a user has to be told of. A field that changes what a row means
(a mark that its reply is bad, images, tools, a loss weight) raises the error that names it, unless its value says
nothing. `columns` is where a user decides by hand.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deft.errors import UserError, shorten

Row = Mapping[str, Any]

HARMLESS_NAMES = frozenset(
    """
    id uuid uid guid idx index row turn_index hash md5 sha1 sha256 minhash cluster embedding

    source sources dataset data_source original_dataset origin original_source subset split file filename file_name
    path url urls link license licence copyright author creator annotator annotators generator engine model model_name
    models teacher version revision citation

    date time datetime timestamp created updated

    category categories cat task tasks task_type task_name tag tags topic topics subtopic domain domains subdomain
    subject subjects field area kind type ability skill skills intent intention knowledge difficulty level grade
    language languages lang locale format genre

    score scores rating ratings rank quality reward rewards perplexity ppl ifd length toxicity toxic safe safety
    redacted verified reviewed approved votes upvotes likes comment comments note notes remark remarks metadata meta
    name

    编号 序号 来源 出处 数据来源 链接 网址 作者 许可 日期 时间 版本 模型
    能力 类别 类型 分类 任务 任务类型 科目 领域 主题 话题 标签 关键词 难度 等级 语言
    得分 评分 分数 质量 备注
    """.split()  # noqa: SIM905
)
"""What tells rows apart, where they come from, when, of which kind they are, and what somebody thought of them."""
HARMLESS_PATTERN = re.compile(
    r"(.*_)?(ids?|url|score|scores|rating|quality|reward|ppl|perplexity|length|len|count|tokens|time|date|lang|language"
    r"|category|type|source|hash|difficulty|model|verified|format)|(num|n|is|has|len|count|min|max|avg|mean)_.*|_.*|"
)
"""The same by their form, a name that begins with an underscore and the nameless index of a table among them."""

DAY = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ][\d:.,+Z-]*)?$")

Says = Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """A field that changes what a row means: `what` is the fault that it stands for where `says` holds of its value."""

    what: str
    says: Says


def is_off(value: Any) -> bool:
    """Say whether a flag is off; 0 and text as a table has it count as well."""
    if isinstance(value, str):
        return value.strip().lower() in ("false", "no", "0", "0.0")
    return value is not None and value == 0


def is_not_one(value: Any) -> bool:
    """Say whether a flag or weight is anything but on, 1 or absent; of a list, whether one of them is."""
    if isinstance(value, list):
        return any(map(is_not_one, value))
    if isinstance(value, str):
        return value.strip().lower() not in ("", "true", "yes", "1", "1.0")
    return value is not None and value != 1


def is_on(value: Any) -> bool:
    """Say whether a flag that hides something is on."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "no", "0", "0.0")
    return bool(value)


def is_there(value: Any) -> bool:
    """Say whether there is any content; empty lists, also as text, are none."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "[]", "{}", "null", "none", "nan")
    return value not in (None, [], {}, False)


NOT_LOSS = "a reply is marked as not to be trained, or with a weight of its own"
MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(("label", "kto_tag"), Meaning(what="a reply is marked as bad", says=is_off)),
    **dict.fromkeys(
        ("train", "trainable", "weight", "loss_weight", "loss_mask", "loss_scale", "output_with_loss"),
        Meaning(what=NOT_LOSS, says=is_not_one),
    ),
    **dict.fromkeys(("masked",), Meaning(what=NOT_LOSS, says=is_on)),
    **dict.fromkeys(
        ("image", "images", "audio", "audios", "video", "videos", "image_path", "audio_path", "video_path"),
        Meaning(what="a row with images, sound or film is not text alone", says=is_there),
    ),
    **dict.fromkeys(
        ("tools", "functions", "available_tools", "tool_calls", "function_call", "function_calls", "tool_call_id"),
        Meaning(what="tool calls are not trained yet", says=is_there),
    ),
    **dict.fromkeys(
        ("chosen", "rejected"),
        Meaning(what="a pair of a better and a worse reply is not trained yet", says=is_there),
    ),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        Meaning(what="reasoning beside the reply is not trained yet", says=is_there),
    ),
    **dict.fromkeys(("history",), Meaning(what="earlier turns stand in `history`", says=is_there)),
}
"""Fields that are refused by name where their value says something, in rows and in single messages."""
MEANINGS["loss"] = Meaning(what=NOT_LOSS, says=is_off)
"""A number under `loss` is a measurement; only a flag that is off changes what the row means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusedField:
    """A field that no row of a format had used: `num_text` of the `num_rows` rows that have it hold text there.

    `format_rows` counts all rows of the format; `example` is a value and `source` the place where it was read.
    """

    format: str
    name: str
    num_rows: int
    num_text: int
    format_rows: int
    example: str
    source: str

    def __str__(self) -> str:
        return (
            f"{self.format}: `{self.name}` is not used, in {self.num_rows:,} of {self.format_rows:,} rows; "
            f"{self.source} has {shorten(self.example, 60)}"
        )

    @property
    def is_prompt_or_reply(self) -> bool:
        """Whether it may well be a part of the conversation: most rows of the format hold text there."""
        return 2 * self.num_text > self.format_rows


class UnusedFields:
    """Counts the fields that are not used, for each format, while rows are being read."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.counts: dict[tuple[str, str], list[int]] = {}
        self.first: dict[tuple[str, str], tuple[bool, str, str]] = {}

    def count(self, format_name: str, unused: Row, source: str) -> None:
        """Count one row; a value with text in it is kept as the example before one without."""
        self.rows[format_name] = self.rows.get(format_name, 0) + 1
        for name, value in unused.items():
            key, textual = (format_name, name), holds_text(value)
            counts = self.counts.setdefault(key, [0, 0])
            counts[0] += 1
            counts[1] += textual
            if key not in self.first or (textual and not self.first[key][0]):
                self.first[key] = (textual, shorten(value), source)

    def result(self) -> tuple[UnusedField, ...]:
        """Return what was counted, those most likely missed first."""
        found = [
            UnusedField(
                format=key[0],
                name=key[1],
                num_rows=num_rows,
                num_text=num_text,
                format_rows=self.rows[key[0]],
                example=self.first[key][1],
                source=self.first[key][2],
            )
            for key, (num_rows, num_text) in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda one: (-one.num_text / one.format_rows, one.format, one.name)))


def check_unused(fields: Sequence[UnusedField]) -> None:
    """Refuse data whose rows hold text that nobody would train on.

    Raises:
        UserError: naming each such field, with the first one's place, and the flags that decide what it is.
    """
    missed = [field for field in fields if field.is_prompt_or_reply]
    if not missed:
        return
    first = missed[0]
    listed = ", ".join(f"`{field.name}`" for field in missed)
    ignoring = ",".join(dict.fromkeys(field.name.rpartition("[].")[2] for field in missed))
    mapping = "" if "[]." in first.name else f"say what it is (--fields prompt=…,input={first.name},response=…), or "
    raise UserError(
        f"most rows hold text in {listed}, which the format {first.format} does not use: the model would never see it",
        got=first.example,
        where=first.source,
        fix=f"{mapping}say that it is not wanted (--ignore-fields {ignoring})",
    )


# --- one row ----------------------------------------------------------------------------------------------------------


def check_meanings(fields: Row) -> None:
    """Refuse a row, or a message, with a field that would make it mean something else than it would be trained as.

    Raises:
        UserError: naming the first such field and its value.
    """
    for name, value in fields.items():
        meaning = MEANINGS.get(name.lower())
        if meaning is not None and meaning.says(value):
            fix = f"take such rows out, or, if it means nothing here, --ignore-fields {name}"
            raise UserError(f"{meaning.what} (`{name}`)", got=value, fix=fix)


def unused_of(rest: Row, messages: Sequence[str], known: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of `rest` that a user should hear of.

    Left out are those `known` to the format, those that are harmless by name, those without content, and those that
    only repeat the messages' contents (a whole prompt as it was rendered, a first question).
    """
    return {
        name: value
        for name, value in rest.items()
        if name not in known and not is_harmless(name) and is_there(value) and not repeats(value, messages)
    }


def is_harmless(name: str) -> bool:
    """Say whether a field of this name says something about a row only."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    return plain in HARMLESS_NAMES or plain in MEANINGS or HARMLESS_PATTERN.fullmatch(plain) is not None


def holds_text(value: Any) -> bool:
    """Say whether a value holds text, at any depth, that is more than a number."""
    if isinstance(value, str):
        return bool(value.strip()) and not is_number(value)
    if isinstance(value, Mapping):
        return any(map(holds_text, value.values()))
    return isinstance(value, list) and any(map(holds_text, value))


def is_number(text: str) -> bool:
    """Say whether text is a number, a day, or one of the words that tables write for a flag."""
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in ("true", "false", "yes", "no") or DAY.match(text.strip()) is not None
    return True


def repeats(value: Any, messages: Sequence[str]) -> bool:
    """Say whether text is the content of one message, or holds the last question and may go on with its reply."""
    if not isinstance(value, str) or not messages:
        return False
    plain = value.strip()
    return any(plain == one.strip() for one in messages) or (len(messages) > 1 and holds_exchange(plain, messages[-2:]))


def holds_exchange(rendered: str, exchange: Sequence[str]) -> bool:
    """Say whether a rendered prompt holds every line of a question, so that it adds nothing but its frame."""
    lines = [line.strip() for line in exchange[0].splitlines() if line.strip()]
    return len(rendered) > len(exchange[0]) and all(line in rendered for line in lines) and exchange[1] in rendered
