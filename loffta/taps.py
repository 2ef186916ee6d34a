"""Turns what the user asks for (`last`, `four-even`, `blocks.11,blocks.2`) into taps of one backbone.

In: the text of `--taps` and the taps that a backbone has.   Out: tap names in depth order, each once.
Called by `extract` for every backbone; knows no tensor and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loffta.errors import unknown_name


def _four_even(available: Sequence[str]) -> Sequence[str]:
    """Four taps at equal distances that end at the last: 2, 5, 8, 11 of 12; all where there are four or fewer."""
    n = len(available)
    return [available[n * quarter // 4 - 1] for quarter in (1, 2, 3, 4)] if n > 4 else available


# each takes the taps that there are, in depth order, and gives its share of them
SETS: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {
    "last": lambda available: available[-1:],
    "last4": lambda available: available[-4:],
    "four-even": _four_even,
    "all": lambda available: available,
}


def resolve_taps(request: str, available: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Resolves a comma-separated list of tap names and set names.

    Args:
        request: for example `last`, `blocks.2,blocks.11` or `four-even,blocks.0`; spaces are ignored.
        available: the taps that the backbone has, shallowest first.
        where: what an error names: the option and the backbone.
    Returns:
        The taps asked for in depth order, each once.
    Raises:
        UsageError: a name that is neither a tap nor a set; the remedy lists near names.
    """
    wanted: set[str] = set()
    for name in (part.strip() for part in request.split(",")):
        if name in SETS:
            wanted.update(SETS[name](available))
        elif name in available:
            wanted.add(name)
        else:
            raise unknown_name("tap", name, [*SETS, *available], where=where)
    return tuple(tap for tap in available if tap in wanted)
