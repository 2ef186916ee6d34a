"""Which backbones a query means, and what they take and give.

In: a few letters, a timm id or a timm pattern.   Out: `Listing`s.   Called by `loffta models`.
The zoo is answered from constants; only other timm models cost an import of timm and a fifth of a second each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from loffta.errors import UsageError
from loffta.zoo.facts import FACTS
from loffta.zoo.names import FAMILIES, Facts, resolve_name

Measure: TypeAlias = Callable[[str], Facts]  # `backbones.measure`, which needs torch; handed in, for it lies above

MAX_MEASURED = 100  # models outside the zoo in one answer: about twenty seconds


@dataclass(frozen=True)
class Listing:
    """One backbone; without `facts` where `problem` kept them from being measured."""

    name: str  # the short name, else timm's
    timm_id: str
    family: str | None  # key of FAMILIES
    facts: Facts | None
    problem: str | None = None


def find_models(query: str | None, measure: Measure) -> list[Listing]:
    """The backbones of the zoo, or those that a query means.

    Args:
        query: letters of a short name, a timm id or a family's name or advice, in any case; else a timm id; or, with *,
            ? or [, a pattern over all timm ids that have pretrained weights.
        measure: called for models outside the zoo.
    Raises:
        UsageError: nothing is meant, with near names; too many models.
    """
    zoo = [
        Listing(short, timm_id, name, FACTS[short])
        for name, family in FAMILIES.items()
        for short, timm_id in family.members.items()
    ]
    if not query:
        return zoo
    if not set(query) & set("*?["):
        found = [listing for listing in zoo if query.casefold() in _text(listing)]
        return found or [_listing(resolve_name(query, where="loffta models"), zoo, measure)]
    return [_listing(timm_id, zoo, measure) for timm_id in _matching(query)]


def _text(listing: Listing) -> str:
    advice = FAMILIES[listing.family].advice if listing.family else ""
    return f"{listing.name}\n{listing.timm_id}\n{listing.family}\n{advice}".casefold()


def _matching(pattern: str) -> list[str]:
    import timm

    names = timm.list_pretrained(pattern)
    if not names:
        raise UsageError(
            f"no pretrained model of timm matches '{pattern}'",
            where="loffta models",
            remedy="try a shorter pattern, or a few letters without *",
        )
    if len(names) > MAX_MEASURED:
        raise UsageError(
            f"{len(names)} models match '{pattern}', and each has to be built to see its shapes",
            where="loffta models",
            remedy=f"narrow the pattern to at most {MAX_MEASURED}",
        )
    return list(names)


def _listing(timm_id: str, zoo: list[Listing], measure: Measure) -> Listing:
    for listing in zoo:
        if listing.timm_id == timm_id:
            return listing
    try:
        return Listing(timm_id, timm_id, None, measure(timm_id))
    except Exception as error:  # models that need real values raise whatever they like
        return Listing(timm_id, timm_id, None, None, f"{type(error).__name__}: {error}".splitlines()[0])
