"""What a user can get wrong, as exceptions: each says what, where, and what to do, and carries its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loffta.words import first_of


class LofftaError(Exception):
    """A problem that the user can mend.

    Args:
        what: the problem in one line.
        where: the file, option, tap or image it concerns.
        remedy: what to do next, as a command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path, remedy: str) -> None:
        super().__init__(f"{what}\n  where:  {where}\n  remedy: {remedy}")
        self.what = what
        self.where = str(where)
        self.remedy = remedy


class UsageError(LofftaError):
    """An option, name or key that cannot be used as given."""

    exit_code = 2


class TooManyBadImages(LofftaError):
    """More images could not be decoded than `--max-bad-frac` allows."""

    exit_code = 3


class DamageFound(LofftaError):
    """Bytes on disk are not the bytes that were written."""

    exit_code = 4


_COPY = "; a run that is not yours to change is measured as a copy: cp -r RUN COPY, loffta evaluate COPY"


class NotSaved(LofftaError):
    """What was measured could not be written; `results` has it, so that it can be shown."""

    def __init__(self, error: LofftaError, results: Mapping[str, Any]) -> None:
        super().__init__(f"the results are not saved: {error.what}", where=error.where, remedy=f"{error.remedy}{_COPY}")
        self.exit_code = error.exit_code
        self.results = results
        self.runs: Sequence[Mapping[str, Any]] = (results,)

    def together(self, runs: Sequence[Mapping[str, Any]]) -> NotSaved:
        """The same error with the results of several runs, in order."""
        self.runs = tuple(runs)
        return self


class Stopped(LofftaError):
    """A signal ended the work early; the same command continues it (75 is sysexits' EX_TEMPFAIL)."""

    exit_code = 75


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str | Path) -> UsageError:
    """The error for a name that is not there, with its nearest neighbours.

    Args:
        kind: what the name should be: "backbone", "tap", "head", "key".
        known: every name that would have been right.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    elif len(known) <= 30:
        remedy = f"known: {', '.join(known)}"
    else:
        remedy = f"none of the {len(known)} known names is close; check the spelling"
    return UsageError(f"unknown {kind} '{name}'", where=where, remedy=remedy)


def refuse(faults: Sequence[str], *, where: str | Path, remedy: str, of: str = "the image set") -> None:
    """Raises one UsageError for all faults, if there are any."""
    if faults:
        problems = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
        raise UsageError(f"{problems} in {of}: {first_of(faults)}", where=where, remedy=remedy)
