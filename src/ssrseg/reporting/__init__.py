"""Run folders in; tables with statistics and one self-contained HTML page out. Needs no torch."""

from ssrseg.reporting.card import model_card
from ssrseg.reporting.comparison import Comparison, compare, compare_records
from ssrseg.reporting.formats import comparison_text, format_of, print_comparison, print_table, table_markdown
from ssrseg.reporting.grouping import members
from ssrseg.reporting.page import report
from ssrseg.reporting.text_tables import overview
from ssrseg.reporting.verdict import verdict
from ssrseg.runs.records import RunRecord, method_name, read_run

__all__ = [
    "Comparison",
    "RunRecord",
    "compare",
    "compare_records",
    "comparison_text",
    "format_of",
    "members",
    "method_name",
    "model_card",
    "overview",
    "print_comparison",
    "print_table",
    "read_run",
    "report",
    "table_markdown",
    "verdict",
]
