import pytest

from deft.errors import UserError
from deft.prompt.identity import read_identity


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("你是小明。\n由某校开发。\n", "你是小明。\n由某校开发。"),
        (r"  You are Ming.\nBe kind.  ", "You are Ming.\nBe kind."),
        (r"第一行\n第二行" + "\n第三行", "第一行\n第二行\n第三行"),
        ("\ufeff我是助手", "我是助手"),
        ("", ""),
        (" \n" + r"\n", ""),
    ],
)
def test_identity(written, text, tmp_path):
    path = tmp_path / "model_identity.txt"
    path.write_text(written, encoding="utf-8")
    assert read_identity(path) == text
    assert read_identity(str(path)) == text


def test_a_missing_file_is_no_identity(tmp_path):
    assert read_identity(tmp_path / "model_identity.txt") == ""


def test_another_encoding_is_an_error(tmp_path):
    path = tmp_path / "model_identity.txt"
    path.write_bytes("你是小明".encode("gbk"))
    with pytest.raises(UserError, match="not UTF-8") as error:
        read_identity(path)
    assert error.value.where == str(path)


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_identity(tmp_path)
