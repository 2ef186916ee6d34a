"""Stages of a pipeline: `loffta` command lines, what each reads and writes, and what it therefore waits for.

In: stages in any order.   Out: the same with their needs, in an order that keeps them. Called by `plan`; the launchers
(`local`, `slurm`) run what comes out.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from loffta.errors import UsageError
from loffta.words import file_name


@dataclass(frozen=True)
class Stage:
    """One command line of a pipeline."""

    name: str  # unique in its pipeline
    arguments: list[str]  # behind `loffta`, without the part
    needs: tuple[str, ...] = ()  # stages that must have succeeded before
    makes: tuple[Path, ...] = ()  # not begun where all are there: for a command that would do its work again
    shows: bool = False  # what the command prints is an answer: it is shown
    reads: tuple[Path, ...] = ()  # folders that other stages may write
    writes: tuple[Path, ...] = ()  # a folder or file that no other stage writes, but for the parts of one extraction
    part: tuple[int, int] | None = None  # (i, n): this stage does the units u with u % n == i
    always: bool = False  # begun after those that it needs, however they ended

    @property
    def kind(self) -> str:
        """The command: extract, scan, train, evaluate, run."""
        return self.arguments[0]

    @property
    def words(self) -> list[str]:
        """All that stands behind `loffta`."""
        return self.arguments if self.part is None else [*self.arguments, "--shard", "{}/{}".format(*self.part)]

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["loffta", *self.words])

    @property
    def whole(self) -> str:
        """The name that all parts of a stage share."""
        return self.name if self.part is None else self.name.removesuffix(" {}/{}".format(*self.part))

    @property
    def stem(self) -> str:
        """A file name for the stage and all its parts, of this command and no other."""
        name = file_name("-".join(self.whole.replace("/", " ").split()))
        return f"{name}-{short_hash(shlex.join(self.arguments))}"

    @property
    def mark(self) -> str:
        """A file name for this stage."""
        return self.stem if self.part is None else "{}.{}-of-{}".format(self.stem, *self.part)


def short_hash(text: str) -> str:
    """Eight hex digits that tell one text from another."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def link(stages: Sequence[Stage], *, where: str | Path) -> list[Stage]:
    """Gives every stage its needs, those named and those computed, and puts it behind them.

    Raises:
        UsageError: two stages write the same, or stages wait for each other.
    """
    writers = _writers(stages, where)
    linked = {}
    for stage in stages:
        found = [writer.name for path in stage.reads for writer in writers.get(path, ())]
        linked[stage.name] = replace(stage, needs=tuple(dict.fromkeys([*found, *stage.needs])))
    sorter = TopologicalSorter({name: [n for n in stage.needs if n in linked] for name, stage in linked.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(f"'{name}'" for name in reversed(error.args[1]))
        raise UsageError(
            f"stages wait for each other: {circle}",
            where=f"{where}: after",
            remedy="leave one of these `after` out",
        ) from error
    done: set[str] = set()
    order: list[Stage] = []
    while len(order) < len(linked):  # of those that could be next, the one that stands first
        ready = (s for s in linked.values() if s.name not in done and done.issuperset({*s.needs} & {*linked}))
        order.append(next(ready))
        done.add(order[-1].name)
    return order


def _writers(stages: Sequence[Stage], where: str | Path) -> dict[Path, list[Stage]]:
    """Stages by what they write."""
    found: dict[Path, list[Stage]] = {}
    for stage in stages:
        for path in stage.writes:
            for other in found.setdefault(path, []):
                if other.part is None or other.whole != stage.whole or other.part == stage.part:
                    raise _both_write(other, stage, path, where)
            found[path].append(stage)
    for path, (stage, *_) in found.items():
        for above in path.parents:
            if above in found:
                raise _both_write(found[above][0], stage, above, where)
    return found


def _both_write(one: Stage, other: Stage, path: Path, where: str | Path) -> UsageError:
    return UsageError(
        f"stages '{one.name}' and '{other.name}' both write {path}",
        where=where,
        remedy="give tasks, caches and runs names of their own; one run per backbone is called RUN-BACKBONE",
    )
