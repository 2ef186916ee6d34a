"""Reports: from run directories to rows, a text table for the terminal, and one self-contained HTML page.

`read_rows` and `format_table` serve the terminal; `write_report` makes the page, with a StageCost per stage.
"""

from loffta.report.page import write_report
from loffta.report.tables import StageCost, format_table, read_rows

__all__ = ["StageCost", "format_table", "read_rows", "write_report"]
