"""The conversations that every template is tried on, in Chinese and English.

Out: `Case`s. Each has a few features that rows in the wild have; `PLAIN` ones are what any template should manage.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from deft.types import Message, ToolCall


class Case(NamedTuple):
    """A conversation, the tools that the assistant may call in it, and the control strings that somebody typed."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    train_reasoning: Literal["last", "all", "none"] = "last"
    typed: tuple[str, ...] = ()


def user(content: str) -> Message:
    """Return a user's message."""
    return Message(role="user", content=content)


def reply(content: str, **further: Any) -> Message:
    """Return a reply."""
    return Message(role="assistant", content=content, **further)


def system(content: str) -> Message:
    """Return a system message."""
    return Message(role="system", content=content)


def result(content: str, name: str, call_id: str = "") -> Message:
    """Return the result of a call."""
    return Message(role="tool", content=content, name=name, call_id=call_id)


def call(city: str, call_id: str = "") -> ToolCall:
    """Return a call that asks for the weather of a city."""
    return ToolCall(name="get_weather", arguments=f'{{"city": "{city}"}}', id=call_id)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查询城市的天气 (weather of a city)",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "城市名"}},
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Local time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "description": "time zone"}},
            "required": ["zone"],
        },
    },
}
CODE = """Here it is:

```python
def add(a: int, b: int) -> int:
\treturn a + b  # 求和
```

- **bold**, <b>tag</b>, a < b && c > d
- {"键": ["值", 1.5, null]}"""

PLAIN = (
    Case("one", (user("光合作用是什么？"), reply("植物用光把二氧化碳和水变成糖。"))),
    Case("two", (user("Hi there"), reply("Hello!"), user("再见"), reply("Bye, 下次见。"))),
    Case(
        "five",
        (
            *(user("第一问"), reply("first answer")),
            *(user("second"), reply("第二个回答")),
            *(user("第三问"), reply("Third.")),
            *(user("fourth?"), reply("第四")),
            *(user("最后"), reply("the end")),
        ),
    ),
    Case("system", (system("你是一个助手。Be brief."), user("你好"), reply("你好！"))),
    Case(
        "system two",
        (system("Answer in Chinese."), user("One plus one?"), reply("二。"), user("And two plus two?"), reply("四。")),
    ),
    Case(
        "white space",
        (
            user("  前后有空格 \n"),
            reply("\n\nInside:\n\n\n   three lines\tand a tab  \n"),
            user("\t制表"),
            reply(" ok "),
        ),
    ),
    Case("code", (user('写一个函数 {"a": 1}'), reply(CODE), user("谢谢 <b>!</b>"), reply("# 标题\n\n1. 不客气"))),
    Case("long", (user("请写一首长诗。" + "很长的要求，" * 80), reply("床前明月光，疑是地上霜。\n" * 60))),
    Case("symbols", (user("1 < 2 & 3 > 2? “引号” 'x' \\n"), reply("Yes: 1 < 2 & 3 > 2. “好” 🙂 \\n {{ x }} {% y %}"))),
)
FLAGS = (
    Case(
        "no loss on a middle reply",
        (user("甲"), reply("alpha"), user("乙"), reply("beta", weight=0.0), user("丙"), reply("gamma 丙")),
    ),
    Case("no loss on the last reply", (user("甲"), reply("alpha 一"), user("乙"), reply("beta", weight=0.0))),
    Case("half a loss", (user("甲"), reply("alpha 一", weight=0.5), user("乙"), reply("beta 二"))),
)
REASONING = (
    Case("think in content", (user("1+1=?"), reply("<think>\n一加一 is easy\n</think>\n\n答案是 2。"))),
    Case("reasoning", (user("2+2=?"), reply("答案是 4。", reasoning="二加二 is also easy"))),
    Case(
        "reasoning two",
        (
            user("2+2=?"),
            reply("答案是 4。", reasoning="二加二 is also easy"),
            user("3+3=?"),
            reply("Six. 六。", reasoning="Three and three\n\n就是六"),
        ),
    ),
    Case(
        "reasoning all",
        (
            user("2+2=?"),
            reply("答案是 4。", reasoning="二加二 is also easy"),
            user("3+3=?"),
            reply("Six. 六。", reasoning="Three and three"),
        ),
        train_reasoning="all",
    ),
    Case(
        "reasoning none",
        (user("2+2=?"), reply("答案是 4。", reasoning="二加二 is also easy")),
        train_reasoning="none",
    ),
    Case(
        "reasoning at first",
        (user("2+2=?"), reply("答案是 4。", reasoning="二加二 is also easy"), user("谢谢"), reply("不客气。")),
    ),
)
TOOLS = (
    Case("tools unused", (user("你好"), reply("Hello 你好")), (WEATHER, CLOCK)),
    Case(
        "call",
        (
            user("北京天气？"),
            reply("", tool_calls=(call("北京", "call00000"),)),
            result("晴，20 度", "get_weather", "call00000"),
            reply("北京今天晴。"),
        ),
        (WEATHER, CLOCK),
    ),
    Case(
        "call, text before",
        (
            system("You may call tools."),
            user("Weather in Paris?"),
            reply("I look it up.", tool_calls=(call("Paris", "call00000"),)),
            result("rain 雨", "get_weather", "call00000"),
            reply("It rains in Paris."),
            user("谢谢"),
            reply("不客气。"),
        ),
        (WEATHER,),
    ),
    Case(
        "two calls",
        (
            user("北京和上海天气？"),
            reply("", tool_calls=(call("北京", "call00000"), call("上海", "call00001"))),
            result("晴", "get_weather", "call00000"),
            result("阴", "get_weather", "call00001"),
            reply("北京晴，上海阴。"),
        ),
        (WEATHER,),
    ),
    Case(
        "calls in turn",
        (
            user("北京天气？然后巴黎？"),
            reply("", tool_calls=(call("北京", "call00000"),)),
            result("晴", "get_weather", "call00000"),
            reply("", tool_calls=(call("Paris", "call00001"),)),
            result("rain", "get_weather", "call00001"),
            reply("晴；雨。"),
        ),
        (WEATHER,),
    ),
    Case(
        "reasoning and call",
        (
            user("广州天气？"),
            reply("", reasoning="要查天气 I must look", tool_calls=(call("广州", "call00000"),)),
            result("热 hot", "get_weather", "call00000"),
            reply("广州很热。", reasoning="结果是热"),
        ),
        (WEATHER,),
    ),
    Case(
        "call, JSON result",
        (
            user("深圳天气？"),
            reply("", tool_calls=(call("深圳", "call00000"),)),
            result('{"temp": 30, "天气": "雨"}', "get_weather", "call00000"),
            reply("深圳 30 度，有雨。"),
        ),
        (WEATHER,),
    ),
)


def typed(control_strings: tuple[str, ...]) -> Case:
    """Return a conversation in which somebody typed control strings."""
    shown = " ".join(control_strings)
    return Case(
        "typed control strings",
        (user(f"什么是 {shown} ？"), reply(f"{shown} 是控制符号。"), user("ok"), reply("结束")),
        typed=control_strings,
    )


KINDS = {"plain": PLAIN, "loss flags": FLAGS, "reasoning": REASONING, "tools": TOOLS}
"""All cases but the one with typed control strings, which depends on the template."""
