"""Reports: from run directories to rows, a text table for the terminal, and one self-contained HTML page.

`read_good_runs` comes first. `format_table`, `format_comparison` and `format_worth` serve the terminal, `*_as_json`
programs; `write_report` makes the page, with a StageCost per stage.
"""

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import comparisons_as_json
from loffta.reporting.page import write_report
from loffta.reporting.tables import StageCost, read_good_runs, read_runs
from loffta.reporting.terminal import format_comparison, format_table, format_worth
from loffta.reporting.worth import worth_as_json

__all__ = [
    "Comparisons",
    "StageCost",
    "comparisons_as_json",
    "format_comparison",
    "format_table",
    "format_worth",
    "read_good_runs",
    "read_runs",
    "worth_as_json",
    "write_report",
]
