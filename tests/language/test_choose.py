"""Which language deft speaks: the command line wins over `DEFT_LANG`, and that over the locale."""

import pytest

from deft.errors import UserError
from deft.language.choose import choose_language

CASES: list[tuple[list[str], dict[str, str], str, list[str]]] = [
    ([], {}, "en", []),
    (["models"], {"LANG": "zh_CN.UTF-8"}, "zh", ["models"]),
    (["models"], {"LANG": "ZH_TW.Big5"}, "zh", ["models"]),
    (["models"], {"LC_ALL": "de_DE.UTF-8", "LANG": "zh_CN.UTF-8"}, "en", ["models"]),
    (["models"], {"LC_ALL": "", "LC_MESSAGES": "zh_CN", "LANG": "en_GB"}, "zh", ["models"]),
    (["models"], {"LANG": "fr_FR.UTF-8"}, "en", ["models"]),
    (["models"], {"DEFT_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en", ["models"]),
    (["models"], {"DEFT_LANG": "", "LANG": "zh_CN.UTF-8"}, "zh", ["models"]),
    (["--lang", "zh", "train", "配方.yaml"], {"DEFT_LANG": "en"}, "zh", ["train", "配方.yaml"]),
    (["train", "配方.yaml", "--lang=en"], {"DEFT_LANG": "nonsense"}, "en", ["train", "配方.yaml"]),
    (["train", "--lang", "en", "--lang", "zh", "--fast"], {}, "zh", ["train", "--fast"]),
    (["chat", "--", "--lang", "fr"], {}, "en", ["chat", "--", "--lang", "fr"]),
]


@pytest.mark.parametrize(("tokens", "environment", "language", "rest"), CASES)
def test_the_nearest_wish_decides(
    tokens: list[str], environment: dict[str, str], language: str, rest: list[str]
) -> None:
    assert choose_language(tokens, environment) == (language, rest)


@pytest.mark.parametrize(
    ("tokens", "environment", "got"),
    [
        (["models", "--lang", "fr"], {"DEFT_LANG": "zh"}, "--lang fr"),
        (["models", "--lang"], {}, "--lang"),
        (["models", "--lang="], {}, "--lang"),
        (["models"], {"DEFT_LANG": "中文"}, "DEFT_LANG=中文"),
    ],
)
def test_a_language_that_deft_does_not_speak_is_refused(
    tokens: list[str], environment: dict[str, str], got: str
) -> None:
    with pytest.raises(UserError, match="language") as refused:
        choose_language(tokens, environment)
    assert refused.value.got == got
    assert "zh" in str(refused.value.fix)
