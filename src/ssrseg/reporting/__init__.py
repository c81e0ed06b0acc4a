"""Run folders in; tables with statistics and one self-contained HTML page out. Needs no torch."""

from ssrseg.reporting.card import model_card as model_card
from ssrseg.reporting.comparison import Comparison as Comparison, compare as compare, compare_records as compare_records
from ssrseg.reporting.formats import (
    comparison_text as comparison_text,
    format_of as format_of,
    print_comparison as print_comparison,
    print_table as print_table,
    table_markdown as table_markdown,
)
from ssrseg.reporting.grouping import members as members
from ssrseg.reporting.page import report as report
from ssrseg.reporting.text_tables import overview as overview
from ssrseg.reporting.verdict import verdict as verdict
from ssrseg.runs.records import RunRecord as RunRecord, method_name as method_name, read_run as read_run
