"""The report of a run: its results, the page that shows them, and their table for the terminal."""

from deft.report.page import report_html, write_report
from deft.report.results import ReplyPair, Results
from deft.report.tables import changes_table

__all__ = ["ReplyPair", "Results", "changes_table", "report_html", "write_report"]
