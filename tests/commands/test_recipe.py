"""Recipes: what a file says, what flags say over it, and what is refused."""

from dataclasses import fields
from pathlib import Path

import pytest

from deft.commands import app as cli
from deft.commands import train
from deft.commands.recipe import read_section
from deft.data.columns import FieldChoice
from deft.errors import UserError
from deft.training.config import TrainConfig


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def config_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainConfig:
    """Return the settings that `deft train …` would run with."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(train, "train_files", lambda config, lang: seen.append(config))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *arguments])
    assert stopped.value.code == 0
    return seen[0]


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "train:\n  train: [数据/甲.json, b.json]\n  learning_rate: 5e-5\n  num_epochs: 7\n  skip_broken: true\n"
    config = config_of(monkeypatch, str(written(tmp_path, text)), "--num-epochs", "2")
    assert config.train == (Path("数据/甲.json"), Path("b.json"))
    assert config.learning_rate == 5e-5, "YAML 1.1 reads 5e-5 as text"
    assert config.num_epochs == 2
    assert config.skip_broken is True
    assert config.batch_size == TrainConfig().batch_size


def test_settings_under_trainer_reach_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "train:\n  train: [a.json]\n  trainer:\n    logging_steps: 5\n"
    config = config_of(monkeypatch, str(written(tmp_path, text)))
    assert int(config.trainer["logging_steps"]) == 5


@pytest.mark.parametrize(
    "value", ["{enable_thinking: false, 语言: 中文}", '\'{"enable_thinking": false, "语言": "中文"}\'']
)
def test_template_kwargs_keep_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    text = f"train:\n  train: [a.json]\n  train_reasoning: all\n  template_kwargs: {value}\n"
    recipe = str(written(tmp_path, text))
    config = config_of(monkeypatch, recipe)
    assert (config.template_kwargs, config.train_reasoning) == ({"enable_thinking": False, "语言": "中文"}, "all")
    config = config_of(monkeypatch, recipe, "--template-kwargs", '{"思考": [1, null]}', "--train-reasoning", "none")
    assert (config.template_kwargs, config.train_reasoning) == ({"思考": [1, None]}, "none")
    assert config_of(monkeypatch, "--train", "a.json").template_kwargs is None, "those stored with the model"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{enable_thinking: false}", "not JSON"),
        ('{"思考": NaN}', "not JSON"),
        ('{"思考": "\\ud800"}', "not JSON"),
        ("", "not JSON"),
        ("[1]", "no JSON object"),
        ("false", "no JSON object"),
        ({"思考": {1, 2}}, "not JSON"),
        ({"add_generation_prompt": True}, "what deft gives"),
    ],
)
def test_wrong_template_kwargs_are_told(given: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        TrainConfig(template_kwargs=given)  # type: ignore[arg-type]
    assert caught.value.fix


def test_a_list_flag_takes_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(monkeypatch, "--train", "a.json", "b.json", "--seed", "3")
    assert config.train == (Path("a.json"), Path("b.json"))
    assert config.seed == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian:\n  model: x\n", ["unknown section", "trian", "did you mean 'train'"]),
        ("train:\n  model: x\n  lerning_rate: 1\n", ["recipe.yaml:3", "lerning_rate", "did you mean 'learning_rate'"]),
        ("train: [1, 2]\n", ["section 'train' should hold"]),
        ("- 训练\n", ["should hold sections"]),
        ("train:\n  model: 'x\n", ["not valid YAML", "recipe.yaml:"]),
        ("quickstart:\n  lang: en\n", ["no section 'train'"]),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_section(written(tmp_path, text), "train", TrainConfig)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_recipe_suggests_the_one_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "train: {}\n")
    with pytest.raises(UserError, match="no such recipe") as caught:
        read_section(tmp_path / "recipes.yaml", "train", TrainConfig)
    assert "did you mean 'recipe.yaml'" in str(caught.value)


def test_the_shipped_recipes_are_valid() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    names = {field.name for field in fields(TrainConfig)}
    found = list(folder.glob("*.yaml"))
    assert found
    for path in found:
        assert set(read_section(path, "train", TrainConfig)) <= names


@pytest.mark.parametrize(
    "fields", ["{prompt: 题目, response: 解答}", "prompt=题目,response=解答", "[prompt=题目, response=解答]"]
)
def test_columns_may_be_named_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: str) -> None:
    text = f"train:\n  train: [数据.jsonl]\n  ignore_fields: [提示]\n  fields: {fields}\n"
    config = config_of(monkeypatch, str(written(tmp_path, text)))
    choice = FieldChoice.parse(config.ignore_fields, config.fields)
    assert choice.columns == {"prompt": ("题目",), "response": ("解答",)} and choice.ignored == {"提示"}


def test_no_and_off_are_words_and_true_and_false_are_not(tmp_path: Path) -> None:
    path = written(tmp_path, "train:\n  model: no\n  chat_format: off\n  skip_broken: true\n  show_rows: 0\n")
    assert read_section(path, "train", TrainConfig) == {
        "model": "no",
        "chat_format": "off",
        "skip_broken": True,
        "show_rows": 0,
    }


@pytest.mark.parametrize(
    "text",
    [
        "train: &a\n  trainer: *a\n",
        "train: &a [*a]\n",
        "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\n"
        "d: &d [*c, *c, *c, *c, *c, *c, *c]\ntrain: {model: [*d, *d, *d, *d, *d, *d]}\n",
    ],
    ids=["a mapping in itself", "a list in itself", "laughs by the billion"],
)
def test_a_recipe_that_refers_to_itself_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="refers to itself, or holds far too much"):
        read_section(written(tmp_path, text), "train", TrainConfig)
