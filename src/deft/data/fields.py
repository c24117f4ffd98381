"""What becomes of the fields of a row that no format uses: known to be harmless, refused by name, or counted.

In: the fields that a format left over. Out: those that a user has to be told of. A field that changes what a row means
(a mark that its reply is bad, images, tools, a loss weight) raises the error that names it, unless its value says
nothing. `columns` is where a user decides by hand.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deft.errors import UserError, shorten

Row = Mapping[str, Any]

HARMLESS_NAMES = frozenset(
    """
    id uuid uid guid idx index row turn_index hash md5 sha1 sha256 minhash cluster embedding 编号 序号

    source sources dataset data_source original_dataset origin original_source subset split file filename file_name
    path url urls link license licence copyright author creator annotator annotators generator engine model model_name
    models teacher version revision citation resource channel avatarurl country hashed_ip header 来源 出处 链接
    数据来源 网址 许可 作者 版本 模型

    date time datetime timestamp created updated tool_prompt 日期 时间

    verified reviewed redacted votes upvotes likes views comment comments note notes remark remarks metadata meta name
    备注
    """.split()  # noqa: SIM905
)
"""What tells rows apart, where they come from, when, and what somebody thought of them: harmless whatever they hold."""
HARMLESS_PATTERN = re.compile(r"(.*_)?(ids?|url|source|hash|time|date|model|verified)|_.*|")
"""The same by their form, a name that begins with an underscore and the nameless index of a table among them."""
LABEL_NAMES = frozenset(
    """
    category categories cat task tasks task_name tag tags topic topics subtopic domain domains subdomain subject
    subjects field area kind ability skill skills intent intention level grade languages locale genre method
    能力 类别 类型 分类 任务 任务类型 领域 学科 科目 主题 话题 标签 难度 等级 语言 分数 评分 得分 质量

    rank ranks ratings rewards ifd toxic toxicity safe safety format question_format file_format
    """.split()  # noqa: SIM905
)
"""Of which kind rows are, and what was measured of them: harmless as long as they hold labels or numbers."""
LABEL_PATTERN = re.compile(
    r"(.*_)?(scores?|rating|quality|reward|ppl|perplexity|length|len|count|lang|language|language_code|category|type"
    r"|difficulty|topic)"
    r"|.+_tokens|(num|n|is|has|len|count|min|max|avg|mean)_.*|unnamed:_\d+"
)
WANTED_PATTERN = re.compile(r"(target|tgt|to|desired|required|expected)_.*")
"""What the reply is to be like (`target_language`): no label of the row, but a part of what is asked."""
MAX_LABEL_CHARACTERS = 80
NO_LABEL = re.compile(r"[\r\n]|[.!?:。！？：]\s*$")
"""Lines, and what ends as a sentence does."""

FLAG_WORDS = ("true", "false", "yes", "no", "on", "off")
DAY = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ][\d:.,+Z-]*)?$")

EXPLAINS = re.compile(r"rational|explanation|explain|analysis|reason|thought|_?cot$|steps|解析|分析|思考|推理|理由")
RENDERED_END = re.compile(r"\s*(<[^<>\s]+>\s*|### *End\s*)*")
"""What may follow the reply in a prompt as it was rendered: the marks that end it."""

Says = Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """A field that changes what a row means: `what` is the fault that it stands for where `says` holds of its value."""

    what: str
    says: Says


def is_off(value: Any) -> bool:
    """Say whether a flag is off; numbers, and text as a table has it, count as well."""
    if isinstance(value, str):
        return value.strip().lower() in ("false", "no", "0", "0.0", "-1")
    return value in (0, -1)


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
    """Say whether there is any content; empty lists, also as text, are none, nor are lists of nothing."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "[]", "{}", "null", "none", "nan")
    if isinstance(value, list):
        return any(map(is_there, value))
    return value not in (None, {}, False)


def is_flag(value: Any) -> bool:
    """Say whether a value only says that something is so, or how much: true, "on", a number."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and value.strip().lower() in FLAG_WORDS)


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
        return text.strip().lower() in FLAG_WORDS or DAY.match(text.strip()) is not None
    return True


NOT_LOSS = "a reply is marked as not to be trained, or with a weight of its own"
BAD = Meaning(what="a reply is marked as bad", says=is_off)
WEIGHT = Meaning(what=NOT_LOSS, says=is_not_one)
HIDDEN = Meaning(what=NOT_LOSS, says=is_on)
MEDIA = Meaning(what="a row with images, sound or film is not text alone", says=is_there)
TOOLS = Meaning(what="tools stand in a field that is not read", says=is_there)
PAIR = Meaning(what="a pair of a better and a worse reply is not trained yet", says=holds_text)
REASONING = Meaning(what="reasoning stands beside a message that is no reply", says=holds_text)
MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(("label", "kto_tag", "kto_label"), BAD),
    **dict.fromkeys(
        ("train", "trainable", "training", "weight", "loss_mask", "loss_scale", "output_with_loss"), WEIGHT
    ),
    **dict.fromkeys(("mask", "masked", "is_masked", "ignore", "skip"), HIDDEN),
    **dict.fromkeys(("train_detail", "training_detail"), Meaning(what=NOT_LOSS, says=is_there)),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), REASONING),
    **dict.fromkeys(("history",), Meaning(what="earlier turns stand in `history`", says=is_there)),
}
"""Fields that are refused by name where their value says something, in rows and in single messages."""
MEANINGS["loss"] = Meaning(what=NOT_LOSS, says=is_off)
"""A number under `loss` is a measurement; only a flag that is off changes what the row means."""
MEANING_PATTERNS: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (
        re.compile(r"(is_|was_)?(correct|good|safe|desirable|desired|acceptable|accepted|approved|preferred|valid)"),
        BAD,
    ),
    (re.compile(r"is_(chosen|helpful|selected)"), BAD),
    (re.compile(r"(loss|sample|example|row|token|turn|message)_weights?"), WEIGHT),
    (
        re.compile(
            r"(image|img|picture|photo|audio|video|speech|wav)s?"
            r"(_?(ids?|paths?|files?|file_?names?|urls?|base64|b64|bytes|data|list))?"
        ),
        MEDIA,
    ),
    (
        re.compile(r"(available_)?(tool|function|api)(s|s?_(list|definitions?|schemas?|calls?|call_id|responses?))"),
        TOOLS,
    ),
    (re.compile(r"(.*_)?(chosen|rejected)(_(response|answer|output|reply|completion|message|conversation)s?)?"), PAIR),
)
"""The same by their form."""


@lru_cache(maxsize=4096)
def meaning_of(name: str) -> Meaning | None:
    """Return what a field of this name may say that changes the row, or None."""
    plain = plain_name(name)
    by_form = (meaning for pattern, meaning in MEANING_PATTERNS if pattern.fullmatch(plain))
    return MEANINGS.get(plain) or next(by_form, None)


def plain_name(name: str) -> str:
    """Return a name as the tables of this module write it."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusedField:
    """A field that no row of a format had used: `num_text` of the `num_rows` rows that have it hold text there.

    `format_rows` counts all rows of the format; `example` is a value and `source` the place where it was read;
    `mapping` is what `--fields` would say to use the field, or "" where it cannot.
    """

    format: str
    name: str
    num_rows: int
    num_text: int
    format_rows: int
    example: str
    source: str
    mapping: str = ""

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
        self.first: dict[tuple[str, str], tuple[bool, str, str, str]] = {}

    def count(self, format_name: str, unused: Row, source: str, mapping: str = "") -> None:
        """Count one row; a value with text in it is kept as the example before one without.

        `mapping` is what `--fields` would say to use a field of it, with {} in its place.
        """
        self.rows[format_name] = self.rows.get(format_name, 0) + 1
        for name, value in unused.items():
            key, textual = (format_name, name), holds_text(value)
            counts = self.counts.setdefault(key, [0, 0])
            counts[0] += 1
            counts[1] += textual
            if key not in self.first or (textual and not self.first[key][0]):
                told = mapping if "[]." not in name and is_lines(value) else ""
                if EXPLAINS.search(name.lower()):  # it leads to the reply, and would give it away
                    told = told.replace("+{}", "").replace("response=", "response={}+")
                self.first[key] = (textual, shorten(value), source, told.replace("{}", name))

    def add(self, other: "UnusedFields") -> None:
        """Count what another one counted as well."""
        for format_name, num_rows in other.rows.items():
            self.rows[format_name] = self.rows.get(format_name, 0) + num_rows
        for key, counts in other.counts.items():
            self.counts[key] = [old + new for old, new in zip(self.counts.get(key, [0, 0]), counts, strict=True)]
            if key not in self.first or (other.first[key][0] and not self.first[key][0]):
                self.first[key] = other.first[key]

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
                mapping=self.first[key][3],
            )
            for key, (num_rows, num_text) in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda one: (-one.num_text / one.format_rows, one.format, one.name)))


def check_unused(fields: Sequence[UnusedField]) -> None:
    """Refuse data whose rows hold text that nobody would train on; the fields of each file are judged by themselves.

    Raises:
        UserError: naming each such field, with the first one's place, and the flags that decide what it is.
    """
    missed = [field for field in fields if field.is_prompt_or_reply]
    if not missed:
        return
    first = missed[0]
    listed = ", ".join(dict.fromkeys(f"`{field.name}`" for field in missed))
    ignoring = ",".join(dict.fromkeys(field.name.rpartition("[].")[2] for field in missed))
    asked = [field for field in missed if field.format == first.format and f"+{field.name}," in field.mapping]
    mapped = next((field.mapping for field in (*asked, *missed) if field.mapping), "")
    if asked:
        mapped = mapped.replace(f"+{asked[0].name},", f"+{'+'.join(dict.fromkeys(one.name for one in asked))},")
    mapping = f"say what it is, such as --fields {mapped}, or " if mapped else ""
    raise UserError(
        f"most rows hold text in {listed}, which the format {first.format} does not use: the model would never see it",
        got=first.example,
        where=first.source,
        fix=f"{mapping}say that it is not wanted: --ignore-fields {ignoring}",
    )


# --- one row ----------------------------------------------------------------------------------------------------------


def check_meanings(fields: Row) -> None:
    """Refuse a row, or a message, with a field that would make it mean something else than it would be trained as.

    Raises:
        UserError: naming the first such field and its value.
    """
    for name, value in fields.items():
        meaning = meaning_of(name)
        if meaning is not None and meaning.says(value):
            raise UserError(f"{meaning.what} (`{name}`)", got=value, fix=advice_on(meaning, name, fields))


def advice_on(meaning: Meaning, name: str, fields: Row) -> str:
    """Say how to train in spite of a field that changes what the row means."""
    better, asked = (
        fields.get("chosen"),
        [one for one in ("instruction", "input", "prompt", "question") if one in fields],
    )
    if meaning is PAIR and is_there(better) and (asked or isinstance(better, list)):
        target = "messages=chosen" if isinstance(better, list) else f"prompt={'+'.join(asked)},response=chosen"
        return f"take such rows out, or train on the better reply alone: --fields {target} --ignore-fields rejected"
    alike = [other for other, value in fields.items() if meaning_of(other) is meaning and meaning.says(value)]
    return f"take such rows out, or, if it means nothing here, --ignore-fields {','.join(alike) or name}"


def unused_of(
    rest: Row, messages: Sequence[str], known: Collection[str] = (), doubted: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of `rest` that a user should hear of.

    Left out are those `known` to the format, those that are harmless (unless `doubted`), those without content, and
    those that only repeat the messages' contents (a whole prompt as it was rendered, a first question).
    """
    return {
        name: value
        for name, value in rest.items()
        if name not in known
        and (name in doubted or not is_harmless(name, value))
        and is_there(value)
        and not repeats(value, messages)
    }


def is_harmless(name: str, value: Any = None) -> bool:
    """Say whether a field of this name, with this value, says something about a row only."""
    kind = kind_of(name)
    return kind == "free" or (kind == "label" and is_label(value)) or (kind == "mark" and not holds_text(value))


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    """Return what the name says of a field: a `mark` changes the row, a `label` is harmless as one, `free` always."""
    plain = plain_name(name)
    if meaning_of(name) is not None:
        return "mark"
    if WANTED_PATTERN.fullmatch(plain):
        return "unknown"
    if plain in HARMLESS_NAMES or HARMLESS_PATTERN.fullmatch(plain):
        return "free"
    return "label" if plain in LABEL_NAMES or LABEL_PATTERN.fullmatch(plain) else "unknown"


def is_label(value: Any) -> bool:
    """Say whether a value is a label or a number, or holds nothing else, rather than a text to be read."""
    if isinstance(value, str):
        return len(value) <= MAX_LABEL_CHARACTERS and NO_LABEL.search(value) is None
    if isinstance(value, Mapping):
        return all(map(is_label, value.values()))
    return not isinstance(value, list) or all(map(is_label, value))


def is_lines(value: Any) -> bool:
    """Say whether a value is text, or a list of texts, which can stand in a prompt line after line."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def repeats(value: Any, messages: Sequence[str]) -> bool:
    """Say whether text is the content of one message, or holds the last question and its reply, or lists such texts."""
    if isinstance(value, list):
        texts = [one.get("content", one.get("value")) if isinstance(one, Mapping) else one for one in value]
        return bool(texts) and all(isinstance(one, str) and repeats(one, messages) for one in texts)
    if not isinstance(value, str) or not messages:
        return False
    plain = value.strip()
    return any(plain == one.strip() for one in messages) or (len(messages) > 1 and holds_exchange(plain, messages[-2:]))


def holds_exchange(rendered: str, exchange: Sequence[str]) -> bool:
    """Say whether a rendered prompt holds every line of a question and ends with its reply: it adds only its frame."""
    lines = [line.strip() for line in exchange[0].splitlines() if line.strip()]
    if not exchange[1].strip():  # it only calls tools
        return False
    before, reply, after = rendered.rpartition(exchange[1].strip())
    return bool(reply) and RENDERED_END.fullmatch(after) is not None and all(line in before for line in lines)
