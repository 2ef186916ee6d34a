"""Turns what the user asks for (`last`, `four-even`, `blocks.11,blocks.2`) into taps of one backbone.

In: the text of `--taps` and the taps that a backbone has.   Out: tap names in depth order, each once.
Called by `extract` for every backbone and by `features` for every store; knows no tensor and no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from loffta.errors import UsageError, unknown_name
from loffta.tokens import TokenSpec

MODULE = "module:"
INNER = re.compile(rf"norm|head|blocks\.\d+\.(attn|norm2|mlp|mlp\.hidden)|{MODULE}.*")  # all else: a block's, a stage's


def is_inner(tap: str) -> bool:
    """Whether a tap lies inside a block or behind the last one; the other taps are the outputs of blocks or stages."""
    return INNER.fullmatch(tap) is not None


def is_map(tap: str) -> bool:
    """Whether a tap may be a convolutional map: a stage's output or a module's, not one of a uniform transformer."""
    return tap.startswith(("stages.", MODULE))


def module_paths(request: str) -> tuple[str, ...]:
    """The dotted paths of the `module:PATH` parts of `--taps`, each once."""
    parts = (part.strip() for part in request.split(","))
    return tuple(dict.fromkeys(part.removeprefix(MODULE) for part in parts if part.startswith(MODULE)))


def merge_specs(old: Sequence[TokenSpec], new: Sequence[TokenSpec]) -> tuple[TokenSpec, ...]:
    """Two lists of one backbone's taps in depth order as one: those of `old`, and what `new` has besides in its place.

    A new tap comes behind the tap that precedes it in `new`.
    """
    merged, position = list(old), 0
    for spec in new:
        taps = [known.tap for known in merged]
        if spec.tap in taps:
            position = taps.index(spec.tap) + 1
        else:
            merged.insert(position, spec)
            position += 1
    return tuple(merged)


def final_tap(available: Sequence[str]) -> str | None:
    """What ALF takes behind the last block: `head` where there is one, else `norm`; None where there is neither."""
    return next((tap for tap in ("head", "norm") if tap in available), None)


def _outputs(available: Sequence[str]) -> Sequence[str]:
    return [tap for tap in available if not is_inner(tap)]


def _four_even(available: Sequence[str]) -> Sequence[str]:
    """Four taps at equal distances that end at the last: 2, 5, 8, 11 of 12; all where there are four or fewer."""
    outputs = _outputs(available)
    n = len(outputs)
    return [outputs[n * quarter // 4 - 1] for quarter in (1, 2, 3, 4)] if n > 4 else outputs


def _norm2(available: Sequence[str]) -> Sequence[str]:
    return [tap for tap in available if tap.endswith(".norm2")]


def _alf(available: Sequence[str]) -> Sequence[str]:
    """ALF's layers (arXiv 2601.09322): norm2 of every block but the first, then the final tap; nothing without one."""
    final = final_tap(available)
    return [*(tap for tap in _norm2(available) if tap != "blocks.0.norm2"), final] if final else []


def _final(available: Sequence[str]) -> Sequence[str]:
    final = final_tap(available)
    return [final] if final else []


# each takes the taps that there are, in depth order, and gives its share of them; the first four give outputs only,
# the last gives all that a backbone has (`extract`) or a store holds (`train`), inner taps and modules included
SETS: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {
    "last": lambda available: _outputs(available)[-1:],
    "last4": lambda available: _outputs(available)[-4:],
    "four-even": _four_even,
    "all": _outputs,
    "norm2": _norm2,
    "alf": _alf,
    "final": _final,
    "every": lambda available: available,
}


def resolve_taps(request: str, available: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Resolves a comma-separated list of tap names and set names.

    Args:
        request: for example `last`, `blocks.2,blocks.11` or `four-even,blocks.0`; spaces are ignored.
        available: the taps that the backbone has, or a store holds, shallowest first.
        where: what an error names: the option and the backbone.
    Returns:
        The taps asked for in depth order, each once.
    Raises:
        UsageError: a name that is neither a tap nor a set, with near names; a set that is empty here, or an inner tap
            of a net that has none, with the reason.
    """
    wanted: set[str] = set()
    for name in (part.strip() for part in request.split(",")):
        found = SETS[name](available) if name in SETS else [name] if name in available else []
        if not found:
            raise unknown_tap(name, available, where=where)
        wanted.update(found)
    return tuple(tap for tap in available if tap in wanted)


def unknown_tap(name: str, available: Sequence[str], *, where: str) -> UsageError:
    """The error for a tap or set that is not among `available`: why it is not, or the names near it."""
    inner = is_inner(name) or name in ("norm2", "alf", "final")
    if inner and any(tap.startswith("stages.") for tap in available):
        return UsageError(
            f"'{name}' does not exist here: a hook would see tokens in an order that is not proven to be the grid's "
            "(windows, units or a net without uniform blocks)",
            where=where,
            remedy="use the outputs of its stages: last, last4, four-even, all or stages.N",
        )
    if name in SETS:
        have = [known for known in SETS if SETS[known](available)]
        return UsageError(
            f"the set '{name}' is empty here: {_reason(name)}",
            where=where,
            remedy=f"use {' or '.join([*have, f'names such as {available[-1]}'] if available else have)}",
        )
    return unknown_name("tap", name, [*SETS, *available], where=where)


def _reason(name: str) -> str:
    if name in ("alf", "final"):
        return "there is neither a final `norm` nor a projection `head` over all tokens"
    return "no norm2 of any block" if name == "norm2" else "there are no outputs of blocks or stages"
