"""What a row says is used, or told: fields that a format does not use are harmless, refused by name, or counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deft.data.columns import FieldChoice, ability_column
from deft.data.fields import holds_text, is_harmless, unused_of
from deft.data.read import make_example, read_examples
from deft.data.write import write_examples
from deft.errors import UserError
from deft.types import Example, Message

Write = Callable[..., Path]
ASK = {"role": "user", "content": "蜘蛛有几条腿？"}
ALPACA = {"instruction": "写一首诗", "input": "", "output": "床前明月光"}


def said(row: dict[str, Any], **options: Any) -> list[str]:
    return [message.content for message in make_example(row, **options).messages]


def chat(**mark: Any) -> dict[str, Any]:
    again = {"role": "user", "content": "你确定吗？"}
    replies = [{"role": "assistant", "content": "六条。"} | mark, {"role": "assistant", "content": "不，八条。"}]
    return {"messages": [ASK, replies[0], again, replies[1]]}


PROMPTS = [
    ({"instruction": "河名？", "context": "磨坊在湘江边。", "response": "湘江"}, ["河名？\n磨坊在湘江边。", "湘江"]),
    ({"instruction": "译成法语", "input": "河", "target": "la rivière"}, ["译成法语\n河", "la rivière"]),
    ({"instruction": "译成英语", "query": "河", "response": "river"}, ["译成英语\n河", "river"]),
    (
        {"instruction": "按文回答", "passage": "磨坊在湘江边。", "question": "哪条河？", "output": "湘江"},
        ["按文回答\n磨坊在湘江边。\n哪条河？", "湘江"],
    ),
    ({"passage": "磨坊在湘江边。", "question": "哪条河？", "output": "湘江"}, ["磨坊在湘江边。\n哪条河？", "湘江"]),
    (ALPACA | {"system_prompt": "你是海盗"}, ["你是海盗", "写一首诗", "床前明月光"]),
    (
        {
            "conversations": [{"from": "HUMAN", "value": "你好"}, {"from": "ChatGPT", "value": "你好！"}],
            "system_prompt": "你是海盗",
        },
        ["你是海盗", "你好", "你好！"],
    ),
    ({"prompt": [ASK], "completion": [{"role": "Model", "content": "八条。"}]}, ["蜘蛛有几条腿？", "八条。"]),
    ({"question": "一加一？", "answer": "二", "id": 7}, ["一加一？", "二"]),
    (ALPACA | {"query": "写一首诗"}, ["写一首诗", "床前明月光"]),
    ({"Question ": "河名？", "CONTEXT": "磨坊在湘江边。", "Answer": "湘江"}, ["磨坊在湘江边。\n河名？", "湘江"]),
    ({"指令": "译成英语", "输入": "河", "输出": "river", "来源": "网"}, ["译成英语\n河", "river"]),
    ({"编号": 3, "问题": "一加一？", "回答": "二"}, ["一加一？", "二"]),
    ({"instruction": "译成英语", "Input": "河", "output": "river"}, ["译成英语\n河", "river"]),
    ({"Instruction": "译成英语", "input": "河", "output": "river"}, ["译成英语\n河", "river"]),
    ({"inputs": "译成英语：河", "targets": "river", "task_name": "译"}, ["译成英语：河", "river"]),
    ({"conversations": ["你好", "你好！"], "source": "论坛"}, ["你好", "你好！"]),
    ({"conversations": [{"role": "user", "value": "你好"}, {"role": "bot", "value": "嗯"}]}, ["你好", "嗯"]),
    (
        {"prompt": json.dumps([ASK]), "completion": "[{'role': 'bot', 'content': '八条。'}]"},
        ["蜘蛛有几条腿？", "八条。"],
    ),
]


@pytest.mark.parametrize(("row", "contents"), PROMPTS, ids=[", ".join(row) for row, _ in PROMPTS])
def test_every_part_of_a_prompt_reaches_the_model(row: dict[str, Any], contents: list[str]) -> None:
    assert said(row) == contents


MARKS = [
    (ALPACA | {"label": False}, "label"),
    (ALPACA | {"kto_tag": "false"}, "kto_tag"),
    (ALPACA | {"kto_tag": 0}, "kto_tag"),
    (ALPACA | {"label": "0"}, "label"),
    (chat() | {"images": ["车.jpg"]}, "images"),
    (ALPACA | {"image": "车.jpg"}, "image"),
    (ALPACA | {"audios": ["声.wav"]}, "audios"),
    ({"prompt": "一加一？", "chosen": "二", "rejected": "三"}, "chosen"),
    ({"conversation": [{"human": "你好", "assistant": "你好！"}], "history": [["甲", "乙"]]}, "history"),
    (ALPACA | {"Label": 0}, "Label"),
    (ALPACA | {"label": "-1"}, "label"),
    (ALPACA | {"is_safe": False}, "is_safe"),
    (ALPACA | {"is_correct": "FALSE"}, "is_correct"),
    (ALPACA | {"image_url": "http://图/1.jpg"}, "image_url"),
    (ALPACA | {"image_id": 42}, "image_id"),
    (ALPACA | {"tool_list": "[{}]"}, "tool_list"),
    (chat() | {"rejected_response": "六条。"}, "rejected_response"),
    (chat(train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}]), "train_detail"),
]


@pytest.mark.parametrize(("row", "name"), MARKS, ids=[f"{n}-{name}" for n, (_, name) in enumerate(MARKS)])
def test_a_mark_that_changes_what_a_row_means_is_refused_by_name(row: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError) as caught:
        make_example(row)
    assert f"(`{name}`)" in caught.value.what
    if name != "chosen":  # without it there is no reply at all
        assert f"--ignore-fields {name}" in str(caught.value.fix)
        assert make_example(row, choice=FieldChoice.parse([name])).messages


NEUTRAL = [
    ALPACA | {"label": True, "kto_tag": None, "images": [], "tools": "[]", "weight": 1.0, "history": []},
    ALPACA | {"loss": 2.31},
    chat(train=True, masked=False, weight=1, loss=True, loss_scale=None, reasoning_content=""),
]


@pytest.mark.parametrize("row", NEUTRAL, ids=["rows", "a measured loss", "messages"])
def test_marks_that_say_nothing_are_no_fault(row: dict[str, Any]) -> None:
    assert said(row)


def test_messages_that_are_not_replies_carry_no_loss_anyway() -> None:
    row = {"messages": [ASK | {"train": False, "weight": 0}, {"role": "assistant", "content": "八条。"}]}
    assert said(row) == ["蜘蛛有几条腿？", "八条。"]


@pytest.mark.parametrize("as_array", [False, True])
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path, as_array: bool) -> None:
    good = json.dumps(ALPACA, ensure_ascii=False)
    twice = '{"instruction": "问", "output": "甲", "output": "乙"}'
    path = tmp_path / "数据.jsonl"
    path.write_text(f"[{good},\n{twice},\n{good}]" if as_array else f"{good}\n{twice}\n{good}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert (caught.value.what, caught.value.where) == ("`output` appears twice in one object", f"{path}:2")
    result = read_examples(path, skip_broken=True)
    assert (len(result.examples), len(result.broken)) == (2, 1)


def test_text_in_most_rows_that_nothing_uses_stops_the_reading(write_lines: Write) -> None:
    path = write_lines([ALPACA | {"提示": "押韵"}, ALPACA | {"提示": "不押韵"}, ALPACA])
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert caught.value.what.startswith("most rows hold text in `提示`, which the format alpaca does not use")
    assert (caught.value.where, caught.value.got) == (f"{path}:1", "押韵")
    assert "--fields prompt=instruction+input+提示,response=output" in str(caught.value.fix)
    assert "--ignore-fields 提示" in str(caught.value.fix)
    ignored = read_examples(path, ignore_fields=["提示,别的"])
    assert ignored.unused == () and dict(ignored.examples[0].meta) == {}
    mapped = read_examples(path, fields=["prompt=instruction+input+提示,response=output"])
    assert [one.messages[0].content for one in mapped.examples[1:]] == ["写一首诗\n不押韵", "写一首诗"]


def test_fields_in_few_rows_or_without_text_are_counted_with_an_example(write_lines: Write) -> None:
    rows = [ALPACA | {"难易": n} for n in range(4)] + [ALPACA | {"提示": "押韵", "来": {"网": ["甲"]}}]
    rows += [
        {"conversations": [{"from": "human", "value": "你好", "心情": "好"}, {"from": "assistant", "value": "嗯"}]}
    ]
    rows += [{"conversations": [{"from": "human", "value": "你好"}, {"from": "assistant", "value": "嗯"}]}] * 2
    result = read_examples(write_lines(rows))
    counted = [
        (one.format, one.name, one.num_rows, one.num_text, one.format_rows, one.example) for one in result.unused
    ]
    assert sorted(counted) == [
        ("alpaca", "提示", 1, 1, 5, "押韵"),
        ("alpaca", "来", 1, 1, 5, "{'网': ['甲']}"),
        ("alpaca", "难易", 3, 0, 5, "1"),  # 0 says as little as nothing at all
        ("belle_conversations", "conversations[].心情", 1, 1, 3, "好"),
    ]
    assert "in 1 of 5 rows" in str(result.unused[0]) or "in 1 of 3 rows" in str(result.unused[0])


def test_a_small_file_beside_a_large_one_is_judged_by_itself(write_lines: Write) -> None:
    large = write_lines([ALPACA] * 9, name="大.jsonl")
    small = write_lines([ALPACA | {"背景": "春夜"}], name="小.jsonl")
    with pytest.raises(UserError, match="most rows hold text in `背景`") as caught:
        read_examples([large, small])
    assert caught.value.where == f"{small}:1"
    few = write_lines([ALPACA | {"背景": "春夜"}, ALPACA, ALPACA], name="小.jsonl")
    [told] = read_examples([large, few]).unused
    assert (told.num_rows, told.num_text, told.format_rows) == (1, 1, 12)


def test_what_explains_the_reply_is_not_advised_as_a_part_of_the_prompt(write_lines: Write) -> None:
    with pytest.raises(UserError) as caught:
        read_examples(write_lines([{"question": "一加一？", "解析": "一加一得二。", "answer": "二"}]))
    assert "--fields prompt=question,response=解析+answer," in str(caught.value.fix)


def test_options_in_columns_of_their_own_are_advised_together(write_lines: Write) -> None:
    row = {"id": 3, "question": "哪个是水果？", "A": "苹果", "B": "铁", "answer": "A", "explanation": "苹果是水果。"}
    path = write_lines([row])
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert "--fields prompt=question+A+B,response=answer," in str(caught.value.fix)
    fields = ["prompt=question+A+B,response=answer"]
    [read] = read_examples(path, fields=fields, ignore_fields=["explanation"]).examples
    assert read.messages[0].content == "哪个是水果？\n苹果\n铁"


def test_a_comma_as_chinese_keyboards_write_it_separates(write_lines: Write) -> None:
    path = write_lines([{"题干": "一加一？", "解": "二", "甲": "无关", "乙": "无关"}])
    [row] = read_examples(path, fields=["prompt=题干，response=解"], ignore_fields=["甲，乙"]).examples
    assert [one.content for one in row.messages] == ["一加一？", "二"]


def test_what_only_repeats_the_conversation_is_harmless(write_lines: Write) -> None:
    rendered = "Below is an instruction.\n### Instruction:\n写一首诗\n### Response:\n床前明月光"
    assert read_examples(write_lines([ALPACA | {"text": rendered, "prompt": rendered}])).unused == ()
    turns = [{"role": "user", "content": "写一首诗"}, {"role": "assistant", "content": "床前明月光"}]
    assert read_examples(write_lines([ALPACA | {"dialog": turns}])).unused == ()
    lines = [ALPACA | {"prompt": "另写一首"}]
    with pytest.raises(UserError, match="most rows hold text in `prompt`"):
        read_examples(write_lines(lines))


TURNS = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "你好！"}]
LOST = [
    (
        {"messages": [ASK | {"提示": "用诗答"}, {"role": "assistant", "content": "八条。", "提示": ""}]},
        "messages[].提示",
    ),
    ({"messages": [ASK | {"name": "小明"}, {"role": "assistant", "content": "八条。"}]}, "messages[].name"),
    (
        {"conversation": [{"human": "你好", "assistant": "哈", "system": "海盗"}, {"human": "嗯", "assistant": "哈"}]},
        "conversation[].system",
    ),
    ({"id": "0123456789abcdef", "messages": chat()["messages"], "context": "磨坊在湘江边。"}, "context"),
    ({"instruction": "译成英语", "source": "河", "target": "river"}, "source"),
    ({"task": "将下面的句子译成英语。", "input": "河", "output": "river"}, "task"),
    ({"knowledge": "磨坊在湘江边。", "question": "哪条河？", "answer": "湘江"}, "knowledge"),
    (ALPACA | {"target_language": "法语"}, "target_language"),
    (ALPACA | {"output_format": "五言"}, "output_format"),
    (ALPACA | {"tokens": ["小明", "去", "长沙"]}, "tokens"),
    (ALPACA | {"label": "差"}, "label"),
    ({"question": "湘江", "answer": "河", "document": "湘江是一条河，流经长沙。"}, "document"),
    ({"Question": "哪个？", "Choices": ["苹果", "铁"], "Answer": "苹果"}, "Choices"),
]


@pytest.mark.parametrize(("row", "name"), LOST, ids=[name for _, name in LOST])
def test_text_that_a_harmless_name_or_a_later_turn_would_hide_is_told(
    row: dict[str, Any], name: str, write_lines: Write
) -> None:
    path = write_lines([row])
    with pytest.raises(UserError, match="most rows hold text in") as caught:
        read_examples(path)
    assert f"`{name}`" in caught.value.what
    advice = str(caught.value.fix)
    ignoring = advice.rpartition("--ignore-fields ")[2]
    assert read_examples(path, ignore_fields=[ignoring]).examples
    assert ("--fields" in advice) == ("[]" not in name)
    if "--fields" in advice:  # what the error advises can be followed
        [used] = read_examples(path, fields=[advice.partition("--fields ")[2].partition(", or")[0]]).examples
        value = row[name]
        assert (value if isinstance(value, str) else "\n".join(value)) in "\n".join(
            one.content for one in used.messages
        )


REAL = [
    {
        "conversations": TURNS,
        "instruction": "你好",
        "response": "你好！",
        "knowledge": "要会问好。",
        "llama_guard_2": "safe",
    },
    {"conversations": TURNS, "title": "关于问好的对话。", "views": 3, "avatarUrl": "图"},
    {"messages": chat()["messages"], "channel": "主", "full_topic": "生活/动物"},
    ALPACA
    | {"Unnamed: 0": "5", "language_code": "zho", "input_tokens": 3, "难度": "易", "category": "诗", "images": [None]},
    {"messages": chat()["messages"], "score_chosen": 7.5, "score_rejected": "2"},
    ALPACA | {"source": "一篇文章，讲到湘江。", "notes": "写得好。", "quality": "high", "is_safe": True, "label": 1},
]


@pytest.mark.parametrize("row", REAL)
def test_real_sets_need_no_flag_for_what_is_harmless(row: dict[str, Any], write_lines: Write) -> None:
    assert read_examples(write_lines([row])).unused == ()


PAIRS = [
    ({"instruction": "问好", "input": "诗", "chosen": "春", "rejected": "滚"}, ["问好\n诗", "春"]),
    (
        {"prompt": "问好", "chosen": [ASK, {"role": "assistant", "content": "八条。"}], "rejected": []},
        ["蜘蛛有几条腿？", "八条。"],
    ),
]


@pytest.mark.parametrize(("row", "contents"), PAIRS, ids=["texts", "turns"])
def test_a_pair_can_be_read_for_its_better_reply_as_the_error_says(row: dict[str, Any], contents: list[str]) -> None:
    with pytest.raises(UserError, match="a better and a worse reply") as caught:
        make_example(row)
    fields, _, ignored = str(caught.value.fix).partition("--fields ")[2].partition(" --ignore-fields ")
    assert said(row, choice=FieldChoice.parse([ignored], [fields])) == contents


ADVISED = [
    ({"标题": "春", "我的问题": "一加一？", "标准答案": "二"}, "--fields prompt=我的问题,response=标准答案"),
    ({"source": "河", "target": "river"}, "--fields prompt=source,response=target"),
    ({"id": "0", "data": ["你好", "你好！"]}, "--fields messages=data"),
    ({"dialog": chat()["messages"]}, "--fields messages=dialog"),
    (
        {"系统设定": "海盗", "user_prompt": "问", "标签组": ["甲"], "llm_reply": "答"},
        "--fields prompt=user_prompt,response=llm_reply",
    ),
]


@pytest.mark.parametrize(("row", "flag"), ADVISED, ids=[flag for _, flag in ADVISED])
def test_an_unknown_format_can_be_read_as_the_error_says(row: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match="not in any known format") as caught:
        make_example(row)
    assert flag in str(caught.value.fix)
    assert len(said(row, choice=FieldChoice.parse([], [flag.removeprefix("--fields ")]))) in (2, 4)


def test_no_reply_is_advised_where_no_column_looks_like_one() -> None:
    with pytest.raises(UserError) as caught:
        make_example(
            {"title": "湘江", "context": "磨坊在湘江边。", "question": "哪条河？", "answers": {"text": ["湘江"]}}
        )
    assert "response=question" not in str(caught.value.fix)


def test_rows_may_lack_named_columns_but_no_column_may_be_missing_everywhere(write_lines: Write) -> None:
    path = write_lines([{"题": "写诗", "解": "春"}, {"题": "写诗", "补": "秋", "解": "叶"}, {"补": "秋", "解": "叶"}])
    read = read_examples(path, fields=["prompt=题+补,response=解"])
    assert [one.messages[0].content for one in read.examples] == ["写诗", "写诗\n秋", "秋"]
    with pytest.raises(UserError, match="the row lacks a column") as caught:
        read_examples(path, fields=["prompt=题+补,response=解,system=人设"])
    assert caught.value.got == "人设"


@pytest.mark.parametrize(
    "name", ["id", "conversation_id", "Source", "quality_score", "num_turns", "", "_split", "lang"]
)
def test_names_that_say_something_about_a_row_only(name: str) -> None:
    assert is_harmless(name)
    assert unused_of({name: "甲"}, []) == {}


@pytest.mark.parametrize("name", ["hint", "context2", "提示", "persona", "passage", "rationale", "answer"])
def test_names_that_may_be_a_part_of_the_prompt(name: str) -> None:
    assert unused_of({name: "甲"}, []) == {name: "甲"}


def test_numbers_days_and_flags_in_quotes_are_no_text() -> None:
    assert not any(map(holds_text, ["", " ", "3.5", "2024-05-01", "True", None, 4, [], {"甲": ["1"]}]))
    assert all(map(holds_text, ["甲", ["", "乙"], {"丙": {"丁": "戊"}}]))


def test_named_columns_make_the_conversation_and_the_rest_is_told(write_lines: Write) -> None:
    path = write_lines([{"题目": "一加一？", "解答": "二", "instruction": "不是题目", "人设": "老师", "id": "甲"}])
    with pytest.raises(UserError, match="most rows hold text in `instruction`"):
        read_examples(path, fields=["prompt=题目,response=解答,system=人设"])
    [row] = read_examples(
        path, fields=["prompt=题目", "response=解答", "system=人设"], ignore_fields=["instruction"]
    ).examples
    assert [message.content for message in row.messages] == ["老师", "一加一？", "二"]
    assert dict(row.meta) == {"row_id": "甲"}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (["prompt"], "--fields takes TARGET=COLUMN"),
        (["promt=题目"], "unknown target for --fields"),
        (["prompt=题目", "prompt=问"], "--fields names a target twice"),
        (["prompt=题目"], "--fields needs a prompt and a response"),
    ],
)
def test_a_wrong_mapping_is_told_before_anything_is_read(fields: list[str], what: str) -> None:
    with pytest.raises(UserError) as caught:
        read_examples("没有这个文件", fields=fields)
    assert caught.value.what == what and caught.value.fix


def test_what_deft_wrote_is_read_again_without_a_word(write_lines: Write, tmp_path: Path) -> None:
    rows = [ALPACA, ALPACA, ALPACA | {"提示": "押韵"}]
    first = read_examples(write_lines(rows)).examples
    write_examples(tmp_path / "出.jsonl", first[2:])
    again = read_examples(tmp_path / "出.jsonl")
    assert again.unused == () and again.examples[0].meta == {"提示": "押韵"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_meta_of_any_name_comes_back(tmp_path: Path, suffix: str) -> None:
    messages = [Message(role="user", content="问"), Message(role="assistant", content="答")]
    meta = {"label": False, "images": ["图"], "system_prompt": "甲", "weight": 0.5, "Label": 0, "image_url": "图"}
    written = Example.create(messages, meta=meta)
    write_examples(tmp_path / f"出{suffix}", [written])
    [read] = read_examples(tmp_path / f"出{suffix}").examples
    assert (read.messages, dict(read.meta)) == (written.messages, meta)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("category", ["数学", "写作"], ("category", 2)),
        ("类别", ["数学", "写作"], ("类别", 2)),
        ("category", ["数学"], None),
        ("category", ["数学", ""], None),
        ("category", [f"第{n}类" for n in range(51)], None),
        ("标签", ["数学", "写作"], None),
    ],
)
def test_a_column_that_may_name_abilities_is_pointed_out(
    tmp_path: Path, column: str, values: list[str], expected: tuple[str, int] | None
) -> None:
    rows = [{"question": f"第{n}问", "answer": "好。", column: value} for n, value in enumerate(values)]
    file = tmp_path / "行.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert ability_column(read_examples([file], ignore_fields=["标签"]).examples) == expected
    if expected:
        named = read_examples([file], fields=[f"ability={column}"]).examples
        assert [example.ability for example in named] == values
        assert ability_column(named) is None
