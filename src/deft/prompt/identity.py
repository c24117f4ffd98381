"""The model's identity or role, which chat gives to it as its system message.

In: a text file that a user edits. Out: its text, empty for none.
"""

from pathlib import Path

from deft.errors import UserError


def read_identity(path: Path | str) -> str:
    r"""Return the text of an identity file; "" if the file is empty or absent.

    The text may have any number of lines; a literal `\n` is a line break too, as in the files of earlier versions.

    Raises:
        UserError: if the file is not UTF-8 text.
    """
    path = Path(path)
    if not path.exists():
        return ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("the identity file is not UTF-8 text", where=str(path), fix="save it as UTF-8") from error
    except OSError as error:
        fix = "give the name of a text file that you have permission to read"
        raise UserError("cannot read the identity file", got=error.strerror, where=str(path), fix=fix) from error
    if "\0" in text:
        raise UserError("the identity file is not UTF-8 text", got=text, where=str(path), fix="save it as UTF-8")
    return text.replace("\\n", "\n").strip()
