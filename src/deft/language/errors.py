"""An error of the user's goes in; what is printed of it, in the language that deft speaks, comes out."""

from deft.errors import KEPT, UserError, shorten, visible
from deft.language.catalogue import translated, worded


def told(error: UserError) -> str:
    """Return an error as it is printed; in English that is `str(error)`, which logs and Python get in any language."""
    lines = [translated(error.what)]
    if error.where is not None:
        lines.append(worded("  where: {place}", place=error.where))
    if error.got is not None:
        lines.append(worded("  got:   {value}", value=shown_value(error.got)))
    if error.fix is not None:
        lines.append(worded("  fix:   {advice}", advice=translated(error.fix)))
    return "\n".join(visible(line, keep=KEPT) for line in lines)


def shown_value(value: object) -> str:
    """Return the value of an error in short; a single word is the user's, a sentence may be deft's own."""
    text = shorten(value)
    return translated(text) if " " in text else text
