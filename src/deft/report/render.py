"""A page from its template: plain values in, one HTML file that needs nothing else out.

Every value is escaped, and its control characters are shown as escapes; texts of deft's own may carry markup, and
stay as they are when values are put into them.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deft.errors import visible
from deft.report.charts import COLOURS

KEPT = "\n\t\u00a0\u3000\u200c\u200d"
"""Characters that do not print and yet belong to texts: line ends, spaces, and what joins emoji and letters."""


def shown(value: Any) -> Any:
    """Return a value as a page shows it: a text of others cannot turn the line around or end the file."""
    return visible(value, keep=KEPT) if isinstance(value, str) and not isinstance(value, Markup) else value


ENVIRONMENT = Environment(
    loader=PackageLoader("deft.report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=shown,
    trim_blocks=True,
    lstrip_blocks=True,
)


ENVIRONMENT.globals["colours"] = COLOURS


def render(template: str, *, texts: Mapping[str, str], **values: Any) -> str:
    """Return the page of a template; `texts` are those of one language."""
    own = {name: Markup(text) for name, text in texts.items()}
    return ENVIRONMENT.get_template(template).render(texts=own, **values)


def filled(text: str, **values: Any) -> Markup:
    """Return a text of deft's own with its fields filled in: its markup stays, that of values is shown as text."""
    return Markup(text).format(**values)
