"""Reports: from run directories to rows, a text table for the terminal, and one self-contained HTML page.

`part_runs`, `read_runs`, `format_table` and `format_worth` serve the terminal; `write_report` makes the page, with a
StageCost per stage.
"""

from loffta.report.page import write_report
from loffta.report.tables import StageCost, format_table, part_runs, read_rows, read_runs
from loffta.report.worth import format_worth, worth_as_json

__all__ = [
    "StageCost",
    "format_table",
    "format_worth",
    "part_runs",
    "read_rows",
    "read_runs",
    "worth_as_json",
    "write_report",
]
