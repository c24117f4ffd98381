"""The hand-written data set in `examples/abilities`: its layout, answers, arithmetic and code, and that nothing leaks.

Each test collects every fault and fails with one line for each: `file:line  what is wrong`.
"""

import ast
import contextlib
import functools
import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from deft.data.audit import leaks, normalised, prompt_key
from deft.data.read import read_examples
from deft.types import Example

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "abilities"
LANGUAGES = ("en", "zh")
MIN_ROWS = {"full": 24, "valid": 10, "test": 10}
ABILITIES = {
    "biology": 0,
    "history": 0,
    "chinese": 0,
    "understanding": 0,
    "reasoning": 0,
    "math": 0,
    "ethics": 0,
    "code": 1,
    "creative_writing": 1,
    "role_play": 1,
}
"""Each ability with the `question_format` of its rows."""

ANSWER_LINE = {"en": "Answer: ", "zh": "答案："}
OPTION = re.compile(r"^([A-F])[.．、]\s*(.+)$", re.MULTILINE)
LETTERS = re.compile(r"[A-F]+")
MAX_SIMILARITY = 0.7
GRAM_LENGTH = 5
PARTS = list(itertools.product(LANGUAGES, MIN_ROWS, ABILITIES))

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the data set is not here")


def file_of(language: str, split: str, ability: str) -> Path:
    return FOLDER / language / "curated" / split / f"{ability}_{split}.json"


@functools.cache
def rows_of(language: str, split: str, ability: str) -> tuple[Example, ...]:
    path = file_of(language, split, ability)
    return read_examples(path).examples if path.exists() else ()


def all_rows(*, language: str | None = None, ability: str | None = None, split: str | None = None) -> list[Example]:
    wanted = (language, split, ability)
    parts = [part for part in PARTS if all(want in (None, name) for want, name in zip(wanted, part, strict=True))]
    return [row for part in parts for row in rows_of(*part)]


def report(faults: list[tuple[Example, str]]) -> None:
    lines = [f"{place(row)}  {fault}" for row, fault in faults]
    assert not lines, "\n" + "\n".join(lines)


def place(row: Example) -> str:
    return row.source.removeprefix(f"{ROOT}/")


def reply_of(row: Example) -> str:
    return row.messages[-1].content


# Layout and answers


@pytest.mark.parametrize(("language", "split", "ability"), PARTS)
def test_file_is_whole(language: str, split: str, ability: str) -> None:
    path = file_of(language, split, ability)
    assert path.exists(), f"{path.relative_to(ROOT)} is missing"
    rows = rows_of(language, split, ability)
    assert len(rows) >= MIN_ROWS[split], f"{path.relative_to(ROOT)}:{len(rows)}  fewer than {MIN_ROWS[split]} rows"
    report([(row, f"`type` is {row.ability}") for row in rows if row.ability != ability])
    expected = ABILITIES[ability]
    report([(row, f"`question_format` is not {expected}") for row in rows if row.meta["question_format"] != expected])


@pytest.mark.parametrize("language", LANGUAGES)
def test_answer_is_the_last_line_of_the_reply(language: str) -> None:
    faults = []
    for row in all_rows(language=language):
        if row.meta.get("question_format") != 0:
            continue
        answer, last = row.meta.get("answer"), reply_of(row).splitlines()[-1]
        if not isinstance(answer, str) or not answer.strip():
            faults.append((row, "no `answer`"))
        elif last != ANSWER_LINE[language] + answer:
            faults.append((row, f"the last line is {last!r}, the answer {answer!r}"))
    report(faults)


def test_choices_are_three_and_the_first_is_the_reply() -> None:
    faults = []
    for row in all_rows():
        if row.meta.get("question_format") != 1:
            continue
        choices = row.meta.get("choices")
        if not isinstance(choices, list) or len(choices) != 3 or not all(isinstance(one, str) for one in choices):
            faults.append((row, "`choices` is not a list of three texts"))
        elif len({choice.strip() for choice in choices}) < 3:
            faults.append((row, "two choices are equal"))
        elif choices[0] != reply_of(row):
            faults.append((row, "the first choice is not the reply"))
    report(faults)


def test_letters_are_among_the_options() -> None:
    faults = []
    for row in all_rows():
        options = OPTION.findall(row.messages[-2].content)
        letters = [letter for letter, _ in options]
        answer = row.meta.get("answer", "")
        if not letters or row.meta.get("question_format") != 0:
            continue
        if letters != list("ABCDEF"[: len(letters)]):
            faults.append((row, f"options are {letters}"))
        if len({normalised(option) for _, option in options}) < len(options):
            faults.append((row, "two options are equal"))
        if not LETTERS.fullmatch(answer) or not set(answer) <= set(letters):
            faults.append((row, f"the answer {answer!r} is not among the options {letters}"))
        elif list(answer) != sorted(set(answer)):
            faults.append((row, f"the letters of {answer!r} are not in order, or repeat"))
    report(faults)


# Leaks


def test_no_id_occurs_twice() -> None:
    first: dict[str, Example] = {}
    faults = []
    for row in all_rows():
        if row.id in first:
            faults.append((row, f"the same conversation as {place(first[row.id])}"))
        first.setdefault(row.id, row)
    report(faults)


def test_no_prompt_occurs_twice_in_a_split() -> None:
    first: dict[tuple[str, str], Example] = {}
    faults = []
    for split in MIN_ROWS:
        for row in all_rows(split=split):
            key = (split, prompt_key(row))
            if key in first:
                faults.append((row, f"the same prompt as {place(first[key])}"))
            first.setdefault(key, row)
    report(faults)


@pytest.mark.parametrize(("left", "right"), itertools.combinations(MIN_ROWS, 2))
def test_no_split_leaks_into_another(left: str, right: str) -> None:
    found = leaks(all_rows(split=left), all_rows(split=right))
    report([(leak.held_out, f"{leak.reason} as {place(leak.train)}") for leak in found])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("left", "right"), itertools.combinations(MIN_ROWS, 2))
def test_no_near_duplicates_between_splits(language: str, left: str, right: str) -> None:
    faults = []
    for ability in ABILITIES:
        known = [(row, grams_of(row)) for row in rows_of(language, left, ability)]
        for row in rows_of(language, right, ability):
            for other, grams in known:
                similarity = max(jaccard(mine, theirs) for mine, theirs in zip(grams_of(row), grams, strict=True))
                if similarity > MAX_SIMILARITY:
                    faults.append((row, f"{similarity:.2f} similar to {place(other)}"))
    report(faults)


@functools.cache
def grams(text: str) -> frozenset[str]:
    """The character 5-grams of a normalised text; a shorter text is its own one gram."""
    text = normalised(text)
    return frozenset(text[n : n + GRAM_LENGTH] for n in range(max(1, len(text) - GRAM_LENGTH + 1)))


def grams_of(row: Example) -> tuple[frozenset[str], frozenset[str]]:
    """The grams of the prompt, and of the whole conversation."""
    texts = [message.content for message in row.messages]
    return grams("\n".join(texts[:-1])), grams("\n".join(texts))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right)


# Python code

FENCED_PYTHON = re.compile(r"```(?:python|py)\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
PYTHON_START = re.compile(r"(def|import|from|class) \w+")


def python_code(reply: str) -> list[str]:
    if PYTHON_START.match(reply) and "```" not in reply:
        return [reply]
    return FENCED_PYTHON.findall(reply)


def test_python_code_compiles() -> None:
    faults = []
    for row in all_rows():
        for reply in [reply_of(row), *row.meta.get("choices", [])]:
            for code in python_code(reply):
                try:
                    ast.parse(code)
                except SyntaxError as error:
                    faults.append((row, f"{error.msg} in {(error.text or '').strip()!r}"))
    report(faults)


# Arithmetic

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)|(?P<operator>[-+*/^()%=])"
    r"|(?P<word>[A-Za-z\u0370-\u03ff_]+)|(?P<other>\S))"
)
SAME_SIGN = str.maketrans("×·⋅÷−–－＋＝（）$¥￥€⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "***/---+=()    0123456789-")
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
PUNCTUATION = set(",.;:?\"'，。；：？、“”‘’")
RATIO = set(":：")
UNITS = {"g", "L"}
BINDING_WORDS = {
    "of",
    "root",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "log",
    "ln",
    "mod",
    "max",
    "min",
    "gcd",
    "lcm",
    "choose",
    "to",
}
BINDING_WORDS |= {"remainder", "余", "万", "亿", "千", "百", "million", "thousand", "hundred", "percent"}
MAX_EXPONENT = 64


class NotPlain(Exception):
    """The text is no plain expression of numbers."""


def math_tokens(text: str) -> list[tuple[str, str]]:
    """Split text into `(kind, token)`: `number`, `operator`, `word`, or `other` for any other character."""
    text = re.sub(r"(?<=\S): ", "; ", SUPERSCRIPT.sub(r"^\g<0>", text)).translate(SAME_SIGN)
    return [(match.lastgroup or "", match[match.lastgroup or 0]) for match in TOKEN.finditer(text)]


def equations(text: str) -> Iterator[tuple[str, Fraction, str, Fraction]]:
    """Yield both sides, as text and as values, of every `a = b` whose sides are plain and one of them an expression."""
    tokens = math_tokens(text)
    start = 0
    for is_maths, group in itertools.groupby(tokens, key=lambda token: token[0] in ("number", "operator")):
        run = [token for _, token in group]
        end = start + len(run)
        if is_maths and "=" in run:
            sides = sides_of(run)
            first_is_open = belongs_before(tokens[:start], sides[0])
            last_is_open = belongs_after(tokens[end:])
            for n, (left, right) in enumerate(itertools.pairwise(sides)):
                is_open = (n == 0 and first_is_open) or (n == len(sides) - 2 and last_is_open)
                if not is_open and len(left) + len(right) >= 4:
                    with contextlib.suppress(NotPlain):
                        yield " ".join(left), value_of(left), " ".join(right), value_of(right)
        start = end


def sides_of(run: list[str]) -> list[list[str]]:
    """Split at equals signs; a bracket around the whole equation is left out."""
    sides: list[list[str]] = [[]]
    for token in run:
        if token == "=":
            sides.append([])
        else:
            sides[-1].append(token)
    if sides[-1].count(")") > sides[-1].count("(") and sides[-1][-1] == ")":
        sides[-1].pop()
    if sides[0].count("(") > sides[0].count(")") and sides[0][0] == "(":
        sides[0].pop(0)
    return sides


def belongs_before(before: list[tuple[str, str]], side: list[str]) -> bool:
    """Say whether what stands before the first side may be a part of it: a variable, a root, a function, a unit."""
    if not before:
        return False
    kind, token = before[-1]
    if token in PUNCTUATION:
        return token in RATIO and len(before) > 1 and before[-2][0] == "number"
    is_symbol = (kind == "word" and len(token) == 1) or (kind == "other" and not token.isalpha())
    return is_symbol or token.lower() in BINDING_WORDS or side[:1] == ["-"] or len(side) == 1


def belongs_after(after: list[tuple[str, str]]) -> bool:
    """Say whether what follows the last side may be a part of it: a variable, a power of ten, a remainder."""
    if not after:
        return False
    kind, token = after[0]
    following = after[1] if len(after) > 1 else ("", "")
    if token in PUNCTUATION:
        return (token in RATIO and following[0] == "number") or (token == "." and following[1] == ".")
    is_variable = kind == "word" and len(token) == 1 and token not in UNITS
    return is_variable or not token.isalpha() or token.lower() in BINDING_WORDS


def value_of(tokens: list[str]) -> Fraction:
    """Evaluate numbers with + - * / ^ ( ) and a percent sign after a number.

    Raises:
        NotPlain: if the tokens are no such expression, or it begins with a sign that may have stood between two terms.
    """
    remaining = list(tokens)
    value = read_sum(remaining)
    if remaining:
        raise NotPlain
    return value


def read_sum(tokens: list[str]) -> Fraction:
    value = read_product(tokens)
    while tokens and tokens[0] in "+-":
        value = value + read_product(tokens) if tokens.pop(0) == "+" else value - read_product(tokens)
    return value


def read_product(tokens: list[str]) -> Fraction:
    value = read_power(tokens)
    while tokens and (tokens[0] in "*/" or tokens[0] == "("):
        if tokens[0] in "*/" and tokens.pop(0) == "/":
            divisor = read_power(tokens)
            if divisor == 0:
                raise NotPlain
            value /= divisor
        else:
            value *= read_power(tokens)
    return value


def read_power(tokens: list[str]) -> Fraction:
    if tokens and tokens[0] == "-":
        tokens.pop(0)
        return -read_power(tokens)
    value = read_atom(tokens)
    if tokens and tokens[0] == "%":
        tokens.pop(0)
        value /= 100
    if tokens and tokens[0] == "^":
        tokens.pop(0)
        exponent = read_power(tokens)
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT or (value == 0 and exponent < 0):
            raise NotPlain
        value **= int(exponent)
    return value


def read_atom(tokens: list[str]) -> Fraction:
    if not tokens:
        raise NotPlain
    token = tokens.pop(0)
    if token == "(":
        value = read_sum(tokens)
        if not tokens or tokens.pop(0) != ")":
            raise NotPlain
        return value
    if not token[0].isdigit():
        raise NotPlain
    return Fraction(token.replace(",", ""))


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("所以 3 × 4 = 12。", [("3 * 4", 12, "12", 12)]),
        ("9² + 12² = 81 + 144 = 225, and", [("9 ^ 2 + 12 ^ 2", 225, "81 + 144", 225), ("81 + 144", 225, "225", 225)]),
        ("两样共花18×2+7×3=57元", [("18 * 2 + 7 * 3", 57, "57", 57)]),
        ("(so 2(3 + 4) = 14)", [("2 ( 3 + 4 )", 14, "14", 14)]),
        ("1,200 − 20% × 1,000 = 1,000", [("1,200 - 20 % * 1,000", 1000, "1,000", 1000)]),
        ("-2^2 = 0 - 4", [("- 2 ^ 2", -4, "0 - 4", -4)]),
        ("2⁻¹ = 1/2 g", [("2 ^ - 1", Fraction(1, 2), "1 / 2", Fraction(1, 2))]),
        ("x² − 9x + 20 = 0, x − 4 + 1 = 2, 3x = 12, √(81+144) = 15", []),
        ("half of 3 + 5 = 4; 17 ÷ 5 = 3 remainder 2; 17÷5=3余2; 17÷5=3……2", []),
        ("2 + 3 = 5x; 1 : 2 = 4 / 8; 1万+2万=3万; 3 apples - 1 + 1 = 3; 1 / 0 = 3", []),
        ("1 + 1 = 3", [("1 + 1", 2, "3", 3)]),
    ],
)
def test_equations_are_found(text: str, sides: list[tuple[str, Fraction, str, Fraction]]) -> None:
    assert [tuple(found) for found in equations(text)] == sides


def test_arithmetic_is_true() -> None:
    faults = []
    for row in all_rows():
        if row.ability == "code":
            continue
        for left, left_value, right, right_value in equations(reply_of(row)):
            if left_value != right_value:
                faults.append((row, f"{left} = {left_value}, not {right}"))
    report(faults)


def test_answer_is_the_last_value_computed() -> None:
    """Only where the working ends in a plain equation, and the answer is a plain number."""
    faults = []
    for row in all_rows(ability="math"):
        *working, _ = reply_of(row).splitlines() or [""]
        last = working[-1].rstrip(".。 ") if working else ""
        computed = plain_value(last.rpartition("=")[2]) if "=" in last else None
        answer = plain_value(row.meta["answer"])
        if computed is not None and answer is not None and computed != answer:
            faults.append((row, f"the working ends in {computed}, the answer is {answer}"))
    report(faults)


def plain_value(text: str) -> Fraction | None:
    """Return the value of a plain expression, a unit after it left out, or None."""
    tokens = math_tokens(text)
    while tokens and tokens[-1][0] in ("word", "other") and tokens[-1][1].isalpha() and len(tokens[-1][1]) != 1:
        tokens.pop()
    try:
        return value_of([token for _, token in tokens])
    except NotPlain:
        return None
