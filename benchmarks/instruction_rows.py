"""Rows as long as those of real instruction data, in the words of the shipped examples.

In: how many, and a seed. Out: Chinese and English examples of one question and one reply. The lengths are those of the
1,999 rows of Alpaca in `instruction_lengths.csv`, counted with the tokenizer of SmolLM2 in LLaMA-Factory's samples
`alpaca_zh_demo.json` and `alpaca_en_demo.json`, whose texts may not be passed on for every use (CC BY-NC 4.0). How fast
and in how much memory a model trains depends on lengths, not on words.
"""

import csv
import random
from pathlib import Path
from typing import Any

from deft.data.read import read_examples
from deft.types import Example, Message

LENGTHS = Path(__file__).with_name("instruction_lengths.csv")
WORDS = Path(__file__).parents[1] / "examples/abilities"


class Words:
    """The texts of the examples in one language, one after another, to be cut by tokens."""

    def __init__(self, language: str, tokenizer: Any) -> None:
        messages = (m for example in read_examples([WORDS / language]).examples for m in example.messages)
        self.text = "\n".join(message.content for message in messages)
        encoded = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self.starts = [start for start, _ in encoded["offset_mapping"]]

    def cut(self, num_tokens: int, chance: random.Random) -> str:
        """Return about so many tokens from somewhere; a character that is several tokens stays whole."""
        first = chance.randrange(len(self.starts) - num_tokens - 1)
        return self.text[self.starts[first] : self.starts[first + num_tokens]] or self.text[self.starts[first]]


def instruction_rows(num_rows: int, tokenizer: Any, *, seed: int) -> list[Example]:
    """Return examples whose lengths are drawn from those of real rows, without repetition."""
    with LENGTHS.open(encoding="utf-8", newline="") as file:
        lengths = list(csv.DictReader(file))
    chance = random.Random(seed)
    words = {language: Words(language, tokenizer) for language in ("zh", "en")}
    rows = []
    for row in chance.sample(lengths, min(num_rows, len(lengths))):
        prompt, reply = (
            words[row["language"]].cut(int(row[name]), chance) for name in ("prompt_tokens", "reply_tokens")
        )
        rows.append(Example.create([Message(role="user", content=prompt), Message(role="assistant", content=reply)]))
    return rows
