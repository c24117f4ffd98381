"""The help of commands, as cyclopts lays it out, goes in; it is printed in the language that deft speaks."""

from typing import TYPE_CHECKING, Any

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel
from cyclopts.help.inline_text import InlineText
from rich.markdown import Markdown
from rich.text import Text

from deft.language.catalogue import translated, worded

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions


class TranslatedHelp(DefaultFormatter):
    """Prints help in the language that is spoken; flags, values and the names of commands stay as they are typed."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: HelpPanel) -> None:
        """Print a panel: its title and the description of each entry are looked up."""
        entries = [with_facts(entry) for entry in panel.entries]
        super().__call__(console, options, panel.copy(title=translated(str(panel.title)), entries=entries))

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        """Print the line that says what to type."""
        if usage:
            line = Text(worded("Usage: {line}", line=usage), "bold")
            console.print(line)

    def render_description(self, console: "Console", options: "ConsoleOptions", description: Any) -> None:
        """Print what a command does."""
        super().render_description(console, options, translated_text(description))


def with_facts(entry: HelpEntry) -> HelpEntry:
    """Return an entry with its text looked up, and with its choices and default, which cyclopts words, behind that."""
    text = translated_text(entry.description)
    facts = []
    if entry.choices:
        facts.append(worded("[choices: {values}]", values=", ".join(entry.choices)))
    if entry.default is not None:
        facts.append(worded("[default: {value}]", value=entry.default))
    for fact in facts:
        text.append(Text(fact, "cyclopts.default"))
    if entry.required:
        text.append(Text(worded("[required]"), "cyclopts.required"))
    return entry.copy(description=text, choices=None, default=None, required=False)


def translated_text(description: Any) -> InlineText:
    """Return a text as cyclopts made it from Markdown, looked up paragraph by paragraph."""
    markdown = getattr(description, "primary_renderable", None)
    source = markdown.markup if isinstance(markdown, Markdown) else ""
    found = [translated(" ".join(paragraph.split())) for paragraph in source.split("\n\n")]
    return InlineText.from_format("\n\n".join(found), "markdown", force_empty_end=description.force_empty_end)
