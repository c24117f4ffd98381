"""Exporting: a folder that others load to the same logits, with a card of facts and nothing of this computer."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deft.commands import app as cli
from deft.errors import UserError
from deft.hub.find import find
from deft.model.load import load_model
from deft.prompt.store import load_chat_format
from deft.publish.card import front_matter, model_card
from deft.publish.export import check_nothing_local, export
from deft.publish.merge import merge
from deft.publish.provenance import Provenance
from deft.serve.assistant import Assistant
from deft.testing.tiny import byte_tokenizer, save_tiny
from deft.training.config import TrainConfig
from deft.training.run import train
from deft.types import Example, Message

IDS = torch.tensor([byte_tokenizer().encode("今天天气很好，hello!")])
NOT_PUBLISHED = re.compile(r"optimizer|scheduler|trainer_state|rng_state|training_args|\.parquet|\.bin|\.pt$")


def rows() -> list[Example]:
    turns = [(f"{n} 加 {n} 等于几?", f"等于 {2 * n}。") for n in range(10)]
    return [
        Example.create([Message(role="user", content=q), Message(role="assistant", content=a)], ability=ability)
        for (q, a), ability in zip(turns, ["数学", "a|b"] * 5, strict=True)
    ]


def run(place: Path, architecture: str, method: str) -> Path:
    """Fine-tune a tiny model and return its best checkpoint."""
    base = save_tiny(place / "底" / architecture, architecture, seed=5)  # type: ignore[arg-type]
    config = TrainConfig(
        model=str(base),
        output_dir=place / "跑",
        valid=(place / "给.jsonl",),
        train=(place / "训练.jsonl",),
        method=method,  # type: ignore[arg-type]
        num_epochs=2,
        learning_rate=1e-2,
        batch_size=4,
    )
    return train(config, rows()[:6], rows()[6:], Console(quiet=True)).best


CASES = [
    ("llama", "full"),
    ("qwen3", "full"),
    ("gemma3", "full"),
    ("llama", "dora"),
    ("qwen3", "lora"),
    ("baichuan2", "lora"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("机器"), *request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("机器"), "llama", "full")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("机器"), "qwen3", "lora")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits[0]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same_bytes(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Compare the bits, so that -0 and 0 differ."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8))
        for name in first
    )


def head_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return found


# --- what is written ----------------------------------------------------------------------------------------------


def test_an_export_loads_to_the_same_logits_everywhere(checkpoint: Path, tmp_path: Path) -> None:
    out = export(checkpoint, tmp_path / "出", max_shard_size="100KB").folder
    expected = logits(load_model(checkpoint, device="cpu").model)
    largest = expected.abs().max().item()
    for model in (load_model(out, device="cpu").model, AutoModelForCausalLM.from_pretrained(out)):
        assert (logits(model) - expected).abs().max().item() < 1e-5 * largest
    base = next((checkpoint.parents[2] / "底").iterdir())
    assert (logits(load_model(base, device="cpu").model) - expected).abs().max().item() > 0.01 * largest
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert (out / "model.safetensors.index.json").is_file()
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] == json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    assert not [file.name for file in out.rglob("*") if NOT_PUBLISHED.search(file.name)]


def test_the_exported_chat_is_the_trained_one(whole: Path, tmp_path: Path) -> None:
    out = export(whole, tmp_path / "出").folder
    ours, theirs = (Assistant(each, identity_file=None, max_new_tokens=8) for each in (whole, out))
    question = [{"messages": [{"role": "user", "content": "3 加 3 等于几?"}]}]
    assert ours.inference(question, temperature=0.0)[0] == theirs.inference(question, temperature=0.0)[0]
    tokenizer = AutoTokenizer.from_pretrained(out)
    stored = load_chat_format(out, tokenizer)
    assert stored is not None
    asked = [Message(role="user", content="你好")]
    turns = [{"role": "user", "content": "你好"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert stored.render_prompt(asked) == prompt
    assert (out / "generation_config.json").is_file() and (out / "chat_template.jinja").is_file()


def test_exporting_an_export_changes_no_byte_of_a_tensor(checkpoint: Path, tmp_path: Path) -> None:
    first = export(checkpoint, tmp_path / "一", max_shard_size="100KB").folder
    again = export(first, tmp_path / "二").folder
    assert len(list(again.glob("*.safetensors"))) == 1
    assert same_bytes(tensors(first), tensors(again))
    if (checkpoint / "model.safetensors").is_file():
        assert same_bytes(tensors(checkpoint), tensors(again))
    changed = tensors(again)
    next(iter(changed.values())).view(-1)[0] += 1e-6
    assert not same_bytes(tensors(first), changed)


def test_weights_are_cast_on_request_and_else_left_as_they_are(whole: Path, tmp_path: Path) -> None:
    half = export(whole, tmp_path / "半", dtype="bfloat16").folder
    stored = tensors(whole)
    assert same_bytes(tensors(half), {name: value.bfloat16() for name, value in stored.items()})
    again = export(half, tmp_path / "又").folder
    assert same_bytes(tensors(half), tensors(again))
    assert json.loads((again / "config.json").read_text())["dtype"] == "bfloat16"


def test_no_file_names_a_folder_of_this_computer(checkpoint: Path, tmp_path: Path) -> None:
    outs = [export(checkpoint, tmp_path / "出").folder]
    if (checkpoint / "adapter_config.json").is_file():
        outs.append(export(checkpoint, tmp_path / "适配器", keep_adapter=True).folder)
        base = json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base.startswith(str(checkpoint.parents[2])), "there is nothing to leave out"
    machine = [str(checkpoint.parents[2]), str(checkpoint.resolve().parent), str(tmp_path), "机器", "训练.jsonl"]
    machine += [json.dumps(each)[1:-1] for each in machine]
    for file in (file for out in outs for file in out.iterdir()):
        content = file.read_bytes()
        assert not [each for each in machine if each.encode() in content], file.name
        assert not re.search(rb"local_files_only|is_local", content), file.name


def test_a_path_that_would_be_published_stops_the_export(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole.resolve(), tmp_path / "检查点")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"note": f"{copy}/来源"}))
    with pytest.raises(UserError, match="name a folder on this computer") as caught:
        export(copy, tmp_path / "出", verify=False)
    assert caught.value.where == "config.json"
    assert not list(tmp_path.glob("*出*"))
    beside = tmp_path / "别处"
    beside.mkdir()
    (beside / "README.md").write_text(f"{tmp_path}旁边/模型 is another folder", encoding="utf-8")
    check_nothing_local(beside, find(copy))


# --- adapters -----------------------------------------------------------------------------------------------------


def test_an_adapter_is_kept_on_request_with_a_warning_about_its_base(adapter: Path, tmp_path: Path) -> None:
    result = export(adapter, tmp_path / "适配器", keep_adapter=True)
    stored = json.loads((result.folder / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] is None
    assert any("no public name" in note for note in result.notes)
    assert same_bytes(tensors(result.folder), tensors(adapter))
    assert head_of(result.folder)["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in (result.folder / "README.md").read_text()
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    (result.folder / "adapter_config.json").write_text(json.dumps(stored | {"base_model_name_or_path": base}))
    expected = logits(load_model(adapter, device="cpu").model)
    for model in (
        load_model(result.folder, device="cpu").model,
        AutoPeftModelForCausalLM.from_pretrained(result.folder),
    ):
        assert torch.allclose(logits(model), expected, atol=1e-4)


def test_an_adapter_of_a_known_model_names_it(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter.resolve(), tmp_path / "检查点")
    config = json.loads((copy / "adapter_config.json").read_text())
    path = "/家/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B-Base/snapshots/abc"
    (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": path}))
    result = export(copy, tmp_path / "适配器", keep_adapter=True, dtype="bfloat16", verify=False)
    stored = json.loads((result.folder / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "Qwen/Qwen3-0.6B-Base"
    assert result.notes == ()
    head = head_of(result.folder)
    assert (head["base_model"], head["license"], head["language"]) == (
        "Qwen/Qwen3-0.6B-Base",
        "apache-2.0",
        ["zh", "en"],
    )
    assert {value.dtype for value in tensors(result.folder).values()} == {torch.bfloat16}


# --- the card -----------------------------------------------------------------------------------------------------


def test_the_card_tells_rows_settings_losses_and_versions(whole: Path, tmp_path: Path) -> None:
    out = export(whole, tmp_path / "出").folder
    card = (out / "README.md").read_text(encoding="utf-8")
    record = json.loads((whole.resolve().parent / "run.json").read_text())
    assert f"| training | 6 | `{record['train_rows']}` |" in card
    assert f"| validation | 4 | `{record['valid_rows']}` |" in card
    assert "| learning_rate | 0.01 |" in card
    step = int(whole.resolve().name.removeprefix("checkpoint-"))
    lines = [json.loads(line) for line in (whole.resolve().parent / "metrics.jsonl").read_text().splitlines()]
    [losses] = [line for line in lines if line["step"] == step and "eval_loss" in line]
    assert f"| all rows | {losses['eval_loss']:.4f} |" in card
    assert f"| 数学 | {losses['eval_loss_数学']:.4f} |" in card
    assert f"| a\\|b | {losses['eval_loss_a|b']:.4f} |" in card
    assert f"| torch | {record['versions']['torch']} | {record['versions']['torch']} |" in card
    assert 'Assistant("出")' in card and 'AutoModelForCausalLM.from_pretrained("出")' in card
    head = head_of(out)
    assert head["library_name"] == "transformers" and "deft" in head["tags"]
    again = export(out, tmp_path / "又").folder
    assert f"`{record['train_rows']}`" in (again / "README.md").read_text(encoding="utf-8")


def test_changes_of_a_quickstart_are_told_with_their_intervals_for_the_best_only(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole.resolve().parent, tmp_path / "跑", symlinks=True)
    change = {"before": 3.0, "after": 2.5, "difference": -0.5, "low": -0.61, "high": -0.4, "num_rows": 12}
    unknown = change | {"low": None, "high": None, "num_rows": 1}
    stored = {"lang": "zh", "results": {"changes": {"数学": change, "all": unknown}}}
    (folder / "quickstart.json").write_text(json.dumps(stored), encoding="utf-8")
    card = (export(folder / "best", tmp_path / "出").folder / "README.md").read_text(encoding="utf-8")
    assert "| 数学 | 12 | 3.000 | 2.500 | -0.500 | -0.610 to -0.400 |" in card
    assert "| all | 1 | 3.000 | 2.500 | -0.500 | not known |" in card
    others = [path for path in folder.glob("checkpoint-*") if path != (folder / "best").resolve()]
    card = (export(others[0], tmp_path / "别").folder / "README.md").read_text(encoding="utf-8")
    assert "interval" not in card


def test_an_unknown_licence_is_asked_for_and_never_made_up(whole: Path, tmp_path: Path) -> None:
    result = export(whole, tmp_path / "出")
    assert any("--license" in note for note in result.notes)
    assert "license" not in head_of(result.folder) and "base_model" not in head_of(result.folder)
    assert "**Not known.**" in (result.folder / "README.md").read_text(encoding="utf-8")
    result = export(whole, tmp_path / "又", license="MIT")
    assert result.notes == ()
    assert head_of(result.folder)["license"] == "mit"
    assert "under the licence MIT" in (result.folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("license", "head"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Llama 3.2", {"license": "llama3.2"}),
        ("Gemma", {"license": "gemma"}),
        ("我们 的 许可", {"license": "other", "license_name": "我们-的-许可"}),
        (None, {}),
    ],
)
def test_licences_are_named_as_the_hub_does(license: str | None, head: dict[str, str]) -> None:
    found = front_matter(Provenance(license=license), is_adapter=False)
    assert {name: value for name, value in found.items() if name.startswith("license")} == head


def test_the_card_of_a_known_model_names_base_language_and_licence(tmp_path: Path) -> None:
    origin = Provenance(base_model="smollm2-135m", license="Apache-2.0", languages=("en",))
    card = model_card("团队/模型", tmp_path, origin)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["language"] == ["en"]
    assert "`smollm2-135m` is under the licence Apache-2.0" in card
    assert "# 模型\n" in card
    other = model_card("团队/模型", tmp_path, replace(origin, license="MIT"))
    assert "`smollm2-135m` is under" not in other and "under the licence MIT" in other


def test_licence_files_and_a_stated_licence_go_along(whole: Path, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "底" / "tiny")
    (base / "LICENSE").write_text("许可证全文", encoding="utf-8")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# 模型\n", encoding="utf-8")
    out = export(base, tmp_path / "出").folder
    assert (out / "LICENSE").read_text(encoding="utf-8") == "许可证全文"
    assert head_of(out)["license"] == "mit"


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_shard_size": "5 大"}, "max_shard_size"),
        ({"max_shard_size": "0GB"}, "max_shard_size"),
        ({"dtype": "int4"}, "that type"),
        ({"license": " "}, "licence is empty"),
        ({"keep_adapter": True}, "no adapter to keep"),
        ({"public": True}, "--public goes with --push"),
        ({"push": "名字", "license": "mit"}, "--push needs"),
        ({"push": "team/model"}, "licence is not known"),
        ({"push": "team/model", "license": "mit"}, "the hub is switched off"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_weights_load(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("deft.publish.export.load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(UserError, match=words) as caught:
        export(whole, tmp_path / "出", **settings)
    assert caught.value.fix
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_there_stays_unless_told(whole: Path, tmp_path: Path) -> None:
    out = export(whole, tmp_path / "出").folder
    (out / "旧.txt").touch()
    with pytest.raises(UserError, match="already exists"):
        export(whole, out)
    with pytest.raises(UserError, match="would delete"):
        export(whole, whole.resolve(), overwrite=True)
    assert (out / "旧.txt").exists()
    export(whole, out, overwrite=True)
    assert not (out / "旧.txt").exists()


def test_quantised_weights_are_refused(whole: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    copy = shutil.copytree(whole.resolve(), tmp_path / "检查点")
    weights = tensors(copy)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not plain floats") as caught:
        export(copy, tmp_path / "出", verify=False)
    assert caught.value.got == "int8"


# --- the hub ------------------------------------------------------------------------------------------------------


class Hub:
    """A hub that remembers what it was asked; `private` None: there is no such repository."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, private: bool | None = None, fault: Exception | None = None):
        self.calls: list[tuple[str, Any]] = []
        self.private, self.fault = private, fault
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)

    def whoami(self) -> dict[str, str]:
        self.calls.append(("whoami", None))
        return {"name": "我"}

    def model_info(self, repository: str, timeout: float) -> Any:
        from types import SimpleNamespace

        from huggingface_hub.errors import RepositoryNotFoundError

        if self.private is None:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        return SimpleNamespace(private=self.private)

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", (repository, private)))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.calls.append(("upload", sorted(file.name for file in folder_path.iterdir())))


@pytest.mark.parametrize("public", [False, True])
def test_a_push_uploads_the_whole_folder_private_by_default(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public: bool
) -> None:
    hub = Hub(monkeypatch)
    result = export(whole, tmp_path / "出", license="mit", push="team/model", public=public)
    assert result.url == "https://huggingface.co/team/model"
    assert ("create", ("team/model", not public)) in hub.calls
    [uploaded] = [files for name, files in hub.calls if name == "upload"]
    assert {"README.md", "model.safetensors", "chat_format.json", "config.json", "tokenizer.json"} <= set(uploaded)
    assert 'from_pretrained("team/model")' in (tmp_path / "出/README.md").read_text(encoding="utf-8")


def test_a_public_repository_is_not_filled_by_accident(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, private=False)
    with pytest.raises(UserError, match="already exists, and is public"):
        export(whole, tmp_path / "出", license="mit", push="team/model")
    assert not list(tmp_path.iterdir())
    export(whole, tmp_path / "出", license="mit", push="team/model", public=True)
    assert any(name == "upload" for name, _ in hub.calls)


def test_without_a_token_or_a_hub_the_error_names_the_way_out(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token") as caught:
        export(whole, tmp_path / "出", license="mit", push="team/model")
    assert "hf auth login" in str(caught.value.fix)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr(hub, "whoami", lambda: 1 / 0)
    with pytest.raises(UserError, match="cannot be reached") as caught:
        export(whole, tmp_path / "出", license="mit", push="team/model")
    assert "hf upload team/model" in str(caught.value.fix)
    assert not list(tmp_path.iterdir())


def test_a_failed_upload_leaves_the_export(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, fault=ConnectionError("断线"))
    with pytest.raises(UserError, match="the upload to team/model failed") as caught:
        export(whole, tmp_path / "出", license="mit", push="team/model")
    assert f"hf upload team/model {tmp_path / '出'}" in str(caught.value.fix)
    assert load_model(tmp_path / "出").model is not None


# --- the command line ---------------------------------------------------------------------------------------------


def test_the_commands_merge_and_export(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["merge", str(adapter), str(tmp_path / "合并")],
        ["export", str(tmp_path / "合并"), str(tmp_path / "出"), "--dtype", "bfloat16", "--license", "mit"],
        ["export", str(adapter), str(tmp_path / "适配器"), "--keep-adapter", "--license", "mit"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "merged:" in said and "exported:" in said and "note:" in said
    assert {value.dtype for value in tensors(tmp_path / "出").values()} == {torch.bfloat16}
    with pytest.raises(SystemExit) as stopped:
        cli.main(["merge", str(adapter), str(tmp_path / "合并")])
    assert stopped.value.code == 2
    assert "already exists" in capsys.readouterr().err


def test_merge_and_export_agree(adapter: Path, tmp_path: Path) -> None:
    merged, exported = merge(adapter, tmp_path / "合并"), export(adapter, tmp_path / "出").folder
    assert same_bytes(tensors(merged), tensors(exported))
    assert math.isclose(logits(load_model(merged).model).sum().item(), logits(load_model(exported).model).sum().item())


def test_an_export_passes_on_the_notice_that_its_base_model_asks_for(whole: Path, tmp_path: Path) -> None:
    source = {"base_model": "gemma3-270m", "license": "Gemma", "languages": ["zh"], "run": {}}
    shutil.copytree(whole, tmp_path / "微调")
    (tmp_path / "微调/source.json").write_text(json.dumps(source))
    out = export(tmp_path / "微调", tmp_path / "出").folder
    notice = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    assert (out / "NOTICE").read_text(encoding="utf-8").startswith(notice + "\n")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert notice in card and "Terms: https://ai.google.dev/gemma/terms" in card
    assert "license: gemma" in card and "base_model: google/gemma-3-270m" in card
    assert not (export(whole, tmp_path / "别的").folder / "NOTICE").exists()
