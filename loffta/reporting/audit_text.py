"""An audit for the terminal: what was found of each kind, and the worst few of it.

In: an Audit.   Out: lines no wider than asked for. Called by `loffta audit`.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta.auditing.found import LABELS, Audit
from loffta.machine.terminal import GAP, aligned
from loffta.reporting.text import count, wrap

_INDENT = "    "
_NARROWEST = 16  # columns of what stands beside figures


def format_audit(audit: Audit, n_shown: int, width: int) -> str:
    """A table of counts, then the worst `n_shown` of every kind."""
    sections = [
        wrap(f"{count(len(audit.rows), 'image')} of {audit.table.source}, by {', '.join(audit.features)}", width),
        _counts(audit, width),
        _worst(f"copies, from a similarity of {audit.similar_from:.4f}", copy_lines(audit), n_shown, width),
        _worst("labels that are probably wrong", label_lines(audit), n_shown, width),
        _worst(
            f"outliers, farther than {audit.far_from:.3g} from their neighbours", outlier_lines(audit), n_shown, width
        ),
        [line for why in audit.not_done.values() for line in wrap(f"label errors were not looked for: {why}", width)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def summary_rows(audit: Audit) -> list[tuple[str, str, str]]:
    """Kind, how many, out of what or how known."""
    in_copies = sum(len(group.rows) for group in audit.copies)
    judged = (
        "not looked for"
        if LABELS in audit.not_done
        else f"of {count(audit.n_judged, 'label')}, of which the judges agree with {audit.agreement:.1%}"
    )
    differ = sum(group.labels_differ for group in audit.copies)
    return [
        ("copies", str(len(audit.copies)), f"groups of {in_copies} images; {differ} with labels that differ"),
        ("leaks", str(len(audit.leaks)), "of these groups lie in several splits"),
        ("label errors", str(len(audit.label_errors)), judged),
        ("outliers", str(len(audit.outliers)), f"half of all images are within {audit.median_distance:.3g}"),
    ]


def copy_lines(audit: Audit) -> list[str]:
    keys = audit.table.keys
    return [
        f"{' = '.join(keys[row] for row in group.rows[:4])}{' = ...' if len(group.rows) > 4 else ''}: "
        f"{group.similarity:.4f}{', leak: ' + ' and '.join(group.splits) if group.leaks else ''}"
        f"{', labels differ' if group.labels_differ else ''}"
        for group in audit.copies
    ]


def label_lines(audit: Audit) -> list[str]:
    table = audit.table
    return [
        f"{table.keys[error.row]}: {table.class_name(error.row)} ({error.chance_given:.2f}), "
        f"rather {table.classes[error.suggested]} ({error.chance:.2f})"
        for error in audit.label_errors
    ]


def outlier_lines(audit: Audit) -> list[str]:
    return [f"{audit.table.keys[outlier.row]}: {outlier.distance:.3g}" for outlier in audit.outliers]


def _counts(audit: Audit, width: int) -> list[str]:
    rows = summary_rows(audit)
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    margin = sum(widths) + 2 * GAP
    lines = []
    for *figures, told in rows:
        first, *further = wrap(told, max(_NARROWEST, width - margin))
        lines.append(f"{aligned(figures, widths, {1})}{' ' * GAP}{first}")
        lines += [" " * margin + line for line in further]
    return lines


def _worst(title: str, lines: Sequence[str], n_shown: int, width: int) -> list[str]:
    if not lines or not n_shown:
        return []
    which = f" (the worst {n_shown} of {len(lines)})" if len(lines) > n_shown else ""
    shown = [f"{_INDENT}{part}" for line in lines[:n_shown] for part in wrap(line, width - len(_INDENT))]
    return [*wrap(f"{title}{which}:", width), *shown]
