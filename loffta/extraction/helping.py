"""Units of other shares, for a process that has finished its own: who is slow or dead does not hold the others up.

In: a Begun that knows `others`.   Out: units to write, one when the next is due, and whether somebody was faster.
Called by `extract`. There are no claims and no locks: a unit that somebody writes is seen by the names of its temporary
files, two may write the same, and the first done file wins.

Who helps takes what nobody writes, from the end, where its owner comes last. When all that is missing is being written
it joins a unit that one process writes, as MapReduce's backup tasks do (Dean and Ghemawat 2004, 3.6). So no more than
two write a unit, but for those that looked in the same moment; and the slower of them stops within LOOK_S.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Set

from loffta.extraction.begin import Begun
from loffta.store.activity import units_at_work
from loffta.store.ledger import unfinished

_MOST = 2  # processes that write one unit
LOOK_S = 10.0  # between two looks at the folders: what costs a network file system most is being asked


class Helper:
    """What one process knows of the others' units."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        self._paths = [array.paths for array in begun.arrays]
        self.handed: set[int] = set()  # units that this process has written to the end
        self.given_up: set[int] = set()  # and not to the end, for another had
        self.n_images = 0  # of both
        self._tried: set[int] = set()
        self._free: list[int] = []  # what may be taken, as of the last look
        self._looked = -math.inf
        self._unit = -1  # that `is_taken` was asked for last
        self._asked = -math.inf  # when

    def units(self) -> Iterator[int]:
        """Units of others that were missing at the last look, each once, chosen when it is asked for."""
        while True:
            if not self._free or time.monotonic() - self._looked >= LOOK_S:
                self._look()
            if not self._free:
                return
            back = -(-len(self._free) // 2)  # the half that owners come to last
            unit = self._free.pop(-1 - self._begun.share[0] % back)  # helpers begin at different places of it
            self._tried.add(unit)
            yield unit

    def is_taken(self, unit: int) -> bool:
        """Whether another process has finished the unit that this one is about to write, or is writing.

        Looks when a unit of others is begun, for it was chosen some batches ago; then every LOOK_S.
        """
        if not self._begun.others:
            return False
        is_new, now = unit != self._unit, time.monotonic()
        if not is_new and now - self._asked < LOOK_S:
            return False
        self._unit, self._asked = unit, now
        if is_new and unit in self._begun.asked:  # just looked at
            return False
        return not self._begun.lacks(unit)

    def count(self, late: Set[int]) -> tuple[int, int]:
        """Units of other shares that this process finished, and units that others finished while it was at them.

        Args:
            late: units that others had finished when this process came to the end of them.
        """
        helped = self.handed - late - self._begun.asked.keys()
        return len(helped), len(self.handed & late) + len(self.given_up)

    def _look(self) -> None:
        self._looked = time.monotonic()
        lacking = unfinished(self._paths, self._begun.others.keys() - self._tried)
        at_work = units_at_work(self._paths) if lacking else {}
        self._free = [unit for unit in lacking if unit not in at_work]
        self._free = self._free or [unit for unit in lacking if at_work[unit] < _MOST]
