"""What a quickstart asks the model, in English and Chinese."""

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
RIGHT_OPTION = "B"
"""Of the first prompt, in both languages."""
