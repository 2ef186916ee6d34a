"""Reports: from run directories to rows, a text table for the terminal, and one self-contained HTML page.

`read_good_runs` comes first. `format_table`, `format_comparison` and `format_worth` serve the terminal, `compare_best`,
`ranked_together` and `worth_of_backbones` programs; `write_report` makes the page, with a StageCost per stage.
"""

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import Compared, compare_baseline, compare_best, find_run
from loffta.reporting.front import OnFront, find_fronts
from loffta.reporting.page import write_report
from loffta.reporting.places import RankedTogether, find_places, ranked_together
from loffta.reporting.tables import LoadedRun, StageCost, read_good_runs, read_runs
from loffta.reporting.terminal import format_baseline, format_comparison, format_table, format_worth
from loffta.reporting.worth import Worth, worth_of_backbones

__all__ = [
    "Compared",
    "Comparisons",
    "LoadedRun",
    "OnFront",
    "RankedTogether",
    "StageCost",
    "Worth",
    "compare_baseline",
    "compare_best",
    "find_fronts",
    "find_places",
    "find_run",
    "format_baseline",
    "format_comparison",
    "format_table",
    "format_worth",
    "ranked_together",
    "read_good_runs",
    "read_runs",
    "worth_of_backbones",
    "write_report",
]
