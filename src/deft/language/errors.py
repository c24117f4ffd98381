"""An error of the user's goes in; what is printed of it, in the language that deft speaks, comes out."""

from deft.errors import KEPT, UserError, shorten, visible
from deft.language.catalogue import translated, worded


def told(error: UserError) -> str:
    """Return an error as it is printed; in English that is `str(error)`, which logs and Python get in any language.

    What was found stays as it is: a value of the user's may look like a sentence of deft's.
    """
    lines = [translated(error.what)]
    if error.where is not None:
        lines.append(worded("  where: {place}", place=error.where))
    if error.got is not None:
        lines.append(worded("  got:   {value}", value=shorten(error.got)))
    if error.fix is not None:
        lines.append(worded("  fix:   {advice}", advice=translated(error.fix)))
    return "\n".join(visible(line, keep=KEPT) for line in lines)
