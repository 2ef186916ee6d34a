"""A scan as text: a table for the terminal, and for files as CSV, Markdown and LaTeX.

In: a Scan.   Out: lines, or a text. Names of backbones, layers and stores come from users: each form writes them so
that they are neither control sequences nor markup.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from loffta.machine.terminal import Table
from loffta.reporting.text import count
from loffta.scanning.results import Row, Scan
from loffta.tasks.figures import metric_head, metric_name, show, show_interval
from loffta.words import human_size, printable

_SHOWN = 20  # rows on a terminal
_TIED = "*"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")
_FIELDS = (
    "backbone",
    "tap",
    "pooling",
    "n_columns",
    "head",
    "shots",
    "score",
    "low",
    "high",
    "best_rank",
    "worst_rank",
)


def scan_lines(scan: Scan) -> list[str]:
    """The table for a terminal, the best first; `notes_of` says what it means."""
    lines = []
    for shots in scan.shots:
        rows = [row for row in scan.rows if row.shots == shots]
        heads, cells = columns_of(scan), [cells_of(scan, row) for row in rows]
        table = Table(cells, heads, right=figures_of(scan))
        lines += ["", f"{count(shots, 'image')} of each class:"] if shots is not None else []
        lines += table.head()
        lines += [line for row in cells[:_SHOWN] for line in table.lines(row)]
        if len(cells) > _SHOWN:
            lines.append(f"and {len(cells) - _SHOWN} more rows, which --out FILE.csv and --json hold")
    return lines


def notes_of(scan: Scan) -> list[str]:
    """What the figures are of."""
    tested = f"{count(scan.n_images, 'image')} of split {scan.tested_on}"
    if scan.n_folds is not None:
        tested += f", each by heads of the other {scan.n_folds - 1} folds"
    trained = count(scan.n_trained, "training image")
    if scan.n_draws is not None:
        trained = f"{count(scan.n_draws, 'draw')} of each number of training images"
    heads = {row.head for row in scan.rows}
    chosen = [name for head, name in (("ridge", "lambda"), ("logreg", "C")) if head in heads]
    notes = [
        f"{_TIED} tied with the best: no row is surely better. Rank: the places that a row may have; all of them hold "
        f"in 95 of 100 such tables.",
        f"{metric_name(scan.metric, first=True)} on {tested}; {trained}.",
    ]
    if chosen:
        notes.append(f"{' and '.join(chosen)} chosen on {scan.chosen_on}.")
    left_out = [f"{n} {why}" for why, n in scan.left_out.items() if n]
    if left_out:
        notes.append(f"Images left out: {', '.join(left_out)}.")
    notes.append(f"{human_size(scan.bytes_read)} read, {scan.seconds:.1f} s.")
    return notes


def columns_of(scan: Scan) -> list[str]:
    """Heads of the columns."""
    several = len({row.pooling for row in scan.rows}) > 1
    return ["layer", *(["pooling"] if several else []), "head", metric_head(scan.metric), "95 % CI", "rank"]


def figures_of(scan: Scan) -> range:
    """Which columns are figures."""
    n = len(columns_of(scan))
    return range(n - 3, n)


def cells_of(scan: Scan, row: Row) -> list[str]:
    """A row as it is shown."""
    pooling = [row.pooling] if len({other.pooling for other in scan.rows}) > 1 else []
    low, high = row.rank
    rank = f"{low}" if low == high else f"{low}\N{EN DASH}{high}"
    figures = [
        show(scan.metric, row.score),
        show_interval(scan.metric, row.ci95),
        f"{rank} {_TIED if row.tied else ' '}",
    ]
    return [f"{row.backbone} {row.tap}", *pooling, row.head, *figures]


def as_csv(scan: Scan) -> str:
    """Every figure with all its digits; a line per row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["store", *_FIELDS, "tied_with_best", "chosen"])
    for row in scan.rows:
        figures = [row.shots, row.score, *row.ci95, *row.rank, row.tied]
        names = [printable(word) for word in (row.store, row.backbone, row.tap)]
        chosen = "; ".join(f"{key} {value:g}" for each in row.chosen for key, value in each.items())
        writer.writerow([*names, row.pooling, row.n_columns, row.head, *figures, chosen])
    return text.getvalue()


def as_markdown(scan: Scan) -> str:
    """A table, and below it what it means."""
    lines = []
    for heads, rows in _tables(scan):
        rule = ["---" if i not in figures_of(scan) else "---:" for i in range(len(heads))]
        lines += [
            _pipes(heads),
            _pipes(rule),
            *(_pipes([_plain(cell) for cell in row]) for row in rows),
            "",
        ]
    return "\n".join([*lines, *(f"{_plain(printable(note))}  " for note in notes_of(scan))]) + "\n"


def as_latex(scan: Scan) -> str:
    """A tabular with the rules of booktabs."""
    lines = ["% needs \\usepackage{booktabs}"]
    for heads, rows in _tables(scan):
        spec = "".join("r" if i in figures_of(scan) else "l" for i in range(len(heads)))
        lines += [f"\\begin{{tabular}}{{{spec}}}", "\\toprule", _latex_row(heads), "\\midrule"]
        lines += [*(_latex_row(row) for row in rows), "\\bottomrule", "\\end{tabular}", ""]
    return "\n".join([*lines, *(f"% {printable(note)}" for note in notes_of(scan))]) + "\n"


def _tables(scan: Scan) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Heads and rows of each number of shots."""
    for shots in scan.shots:
        heads = columns_of(scan)
        heads[0] += "" if shots is None else f", {count(shots, 'image')} of each class"
        rows = [cells_of(scan, row) for row in scan.rows if row.shots == shots]
        yield heads, [[printable(cell).strip() for cell in row] for row in rows]


def _plain(text: str) -> str:
    """With nothing in it that is markup to Markdown."""
    return _MARKDOWN.sub(r"\\\1", text)


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ["".join(_LATEX.get(sign, sign) for sign in cell).replace("\N{EN DASH}", "--") for cell in cells]
    return f"{' & '.join(escaped)} \\\\"
