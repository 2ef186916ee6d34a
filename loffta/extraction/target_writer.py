"""Writes the dense targets of units: read once from the source, kept at their own sizes, and made squares of.

In: rows of a unit with what decoding told of their images.   Out: the unit's file of native targets and its squares.
Threads read and decode; targets are written in the order of rows, whoever was first. What is there already at its own
size is not read from the source again: squares of another geometry are made from that.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.extraction.carried import GONE
from loffta.extraction.targets import Dense, Square
from loffta.files.os_words import PASSING, explain
from loffta.images.decode import one_line
from loffta.images.geometry import PixelGeometry
from loffta.images.room import Room
from loffta.images.sources import ImageSource
from loffta.images.target_square import square_target
from loffta.images.targets import BadTarget, decode_target
from loffta.machine import process
from loffta.store.asked import rows_due
from loffta.store.cache import Cache, CachedArray
from loffta.store.handover import Pixels
from loffta.store.ledger import ImageStatus
from loffta.store.reads import REPAIR
from loffta.store.sink import UnitSink
from loffta.store.target_codec import count_objects, encode_target, largest_class, read_target
from loffta.store.target_files import BAD, MISSING, NOT_GIVEN, OK, FileWriter
from loffta.targets import IGNORE, BoxList, NativeTarget, TargetKind

_AHEAD = 64  # rows that are read before they are written
_PART_ROWS = 16  # squares that are handed over together
_PIXEL_BYTES = 12  # that decoding holds of a pixel: the file's, float32 and an index
_NO_BOXES = BoxList(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_))


@dataclass(frozen=True)
class _Made:
    """One row of one kind."""

    row: int
    status: str
    reason: str
    height: int = 0
    width: int = 0
    digest: str = ""
    n_objects: int = 0
    largest: int = -1
    data: bytes = b""
    squares: Sequence[NDArray[Any] | BoxList] = ()  # over those that are being written
    altered: bool = False  # other bytes than those that were there before

    @property
    def cells(self) -> tuple[Any, ...]:
        """Of the file of native targets."""
        counts = (self.n_objects, self.largest)
        return self.row, self.status, self.reason, self.height, self.width, self.digest, *counts, self.data


@dataclass(frozen=True)
class _Tools:
    """What all units work with."""

    cache: Cache
    source: ImageSource
    pool: Executor  # reads and decodes
    sink: UnitSink  # writes squares
    room: Room


class TargetWriter:
    """Units of all kinds that are asked for; leaving the context deletes what was not committed."""

    def __init__(
        self, cache: Cache, dense: Sequence[Dense], source: ImageSource, pool: Executor, sink: UnitSink
    ) -> None:
        """`pool` reads and decodes, `sink` writes squares."""
        self._tools, self._dense = _Tools(cache, source, pool, sink, Room()), dense
        self._kinds: list[_KindUnit] = []
        self._rows: deque[int] = deque()
        self._n_fed = 0
        self.units = 0  # written
        self.altered = Counter[TargetKind]()  # targets that are not what they were when their unit was written before

    def due(self, unit: int, asked: Sequence[int]) -> Sequence[int]:
        """Rows to write of a unit: what is asked for, and what those forms hold that lack some of it."""
        return rows_due([form for dense in self._dense for form in dense.forms], unit, asked)

    def begin(self, unit: int, rows: Sequence[int], asked: Sequence[int]) -> None:
        """Starts a unit of every kind that lacks some of `asked`; `rows` is what is to be written, rising."""
        self._kinds, self._rows, self._n_fed = [], deque(rows), 0
        lacking = [dense for dense in self._dense if not all(form.has_unit(unit, asked) for form in dense.forms)]
        for dense in lacking:  # one by one: where a file cannot be opened, those before it are given up
            self._kinds.append(_KindUnit(self._tools, dense, unit, rows, asked))

    def feed(self, images: Sequence[ImageStatus]) -> None:
        """Goes on with the rows up to the last of `images`, a list that grows from call to call within a unit."""
        for image in images[self._n_fed :] if self._kinds else ():
            while self._rows and self._rows[0] <= image.row:
                row = self._rows.popleft()
                self._add(row, image if row == image.row else None)
        self._n_fed = len(images)

    def commit(self) -> None:
        """Puts the unit in place, with what it had of rows whose images were not among those that were fed."""
        while self._kinds and self._rows:
            self._add(self._rows.popleft(), None)
        for kind in self._kinds:
            kind.commit()
            self.altered[kind.kind] += kind.altered
        self.units += bool(self._kinds)
        self._kinds = []

    def give_up(self) -> None:
        """Deletes what was written of the unit that was begun, but for squares: those are the sink's."""
        for unit in self._kinds:
            unit.abort()
        self._kinds = []

    def __enter__(self) -> TargetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    def _add(self, row: int, image: ImageStatus | None) -> None:
        for kind in self._kinds:
            kind.add(row, image)


class _KindUnit:
    """One unit of one kind, in all forms that lack it."""

    def __init__(self, tools: _Tools, dense: Dense, unit: int, rows: Sequence[int], asked: Sequence[int]) -> None:
        self._tools, self._info, self.kind = tools, dense.info, dense.info.kind
        self._images = tools.cache.table.identity(rows)
        self._path = dense.native.paths.done(unit)
        self._old = dense.native.cells(unit) if dense.native.listed(unit) else iter(())
        self._next_old: dict[str, Any] | None = next(self._old, None)
        is_there = dense.native.has_unit(unit, rows)
        self._native = None if is_there else dense.native.open(unit, self._images)
        squares = [square for square in dense.squares if not square.form.has_unit(unit, asked)]
        self._squares: list[_Maps | _Boxes] = []
        self._pending: deque[Future[_Made]] = deque()
        self.altered = 0
        try:
            for square in squares:
                self._squares.append(_open(tools, square, unit, self._images))
        except BaseException:
            self.abort()
            raise

    def add(self, row: int, image: ImageStatus | None) -> None:
        """One row; `image` None: what there was of it stays."""
        while self._next_old is not None and self._next_old["row"] < row:
            self._next_old = next(self._old, None)
        old = self._next_old if self._next_old is not None and self._next_old["row"] == row else None
        if image is None or self._native is None:
            made = self._tools.pool.submit(self._keep, row, old)
        else:
            made = self._tools.pool.submit(self._read, row, image, old)
        self._pending.append(made)
        while len(self._pending) > _AHEAD:
            self._write(self._pending.popleft().result())

    def commit(self) -> None:
        """Waits for the threads and puts all forms in place: first the targets at their own size."""
        while self._pending:
            self._write(self._pending.popleft().result())
        if self._native is not None:
            self._native.commit()
        for square in self._squares:
            square.commit()

    def abort(self) -> None:
        """Deletes temporary files; those of arrays are the sink's."""
        for future in self._pending:
            future.cancel()
        for square in self._squares:
            square.abort()
        if self._native is not None:
            self._native.abort()

    def _write(self, made: _Made) -> None:
        self.altered += made.altered
        if self._native is not None:
            self._native.add(*made.cells)
        for i, square in enumerate(self._squares):
            square.add(made, made.squares[i] if made.status == OK else None)

    def _read(self, row: int, image: ImageStatus, old: dict[str, Any] | None) -> _Made:
        """From the source."""
        path = self._tools.cache.table.target(self.kind, row)
        if path is None or image.status != OK:
            reason = NOT_GIVEN if path is None else "its image cannot be used"
            return _Made(row, MISSING, reason)
        with self._tools.room.hold(image.height * image.width * _PIXEL_BYTES):
            try:
                data = self._tools.source.read(path)
            except OSError as error:
                if error.errno in PASSING:
                    raise explain(error) from error
                return _Made(row, BAD, one_line(f"cannot be read: {error}"))
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            altered = old is not None and old["hash"] not in ("", digest)
            try:
                target = self._decode(data, image)
            except BadTarget as error:
                return _Made(row, BAD, str(error), digest=digest, altered=altered)
            counts = (count_objects(target), largest_class(target))
            facts = (target.height, target.width, digest, *counts, encode_target(target))
            return _Made(row, OK, "", *facts, squares=self._squares_of(row, target), altered=altered)

    def _decode(self, data: bytes, image: ImageStatus) -> NativeTarget:
        palette = self._info.palette
        colours = None if palette is None else {(r, g, b): number for r, g, b, number in palette}
        size = (image.height, image.width)
        target = decode_target(self.kind, data, classes=self._info.classes, palette=colours, size=size)
        if self.kind == "mask" and not self._info.classes and target.map is not None and target.map.dtype != np.uint8:
            raise BadTarget(f"it has classes over {IGNORE - 1}, and the image set does not say how many there are")
        return target

    def _keep(self, row: int, old: dict[str, Any] | None) -> _Made:
        """As it was written."""
        if old is None:
            return _Made(row, MISSING, GONE)
        names = ("status", "reason", "height", "width", "hash", "n_objects", "largest", "data")
        made = _Made(row, *(old[name] for name in names))
        if made.status != OK or not self._squares:
            return made
        try:
            target = read_target(self.kind, made.height, made.width, made.data)
        except ValueError as error:
            raise DamageFound(f"row {row}: {error}", where=self._path, remedy=REPAIR) from error
        return replace(made, squares=self._squares_of(row, target))

    def _squares_of(self, row: int, target: NativeTarget) -> list[NDArray[Any] | BoxList]:
        key = self._tools.cache.table.keys[row]  # as first said: views are drawn from it
        geometries = [square.geometry for square in self._squares]
        return [square_target(target, geometry, key, geometry.image_px) for geometry in geometries]


def _open(tools: _Tools, square: Square, unit: int, images: str) -> _Maps | _Boxes:
    if isinstance(square.form, CachedArray):
        return _Maps(tools, square.geometry, square.form, unit, images)
    return _Boxes(square.geometry, square.form.open(unit, images))


class _Maps:
    """One unit of an array of squares."""

    def __init__(self, tools: _Tools, geometry: PixelGeometry, array: CachedArray, unit: int, images: str) -> None:
        self.geometry = geometry
        self._tools, self._run = tools, {"versions": process.versions(), "images": images}
        self._writer = tools.sink.open(array, unit)
        self._statuses: list[ImageStatus] = []
        self._part: list[tuple[int, NDArray[Any]]] = []

    def add(self, made: _Made, square: Any) -> None:
        """One row; `square` is None where there is none."""
        self._statuses.append(ImageStatus(made.row, made.status, made.reason, made.width, made.height))
        if square is not None:
            self._part.append((made.row, square))
        if len(self._part) == _PART_ROWS:
            self._hand_over()

    def commit(self) -> None:
        """See `UnitSink.commit`."""
        self._hand_over()
        self._tools.sink.commit([(self._writer, self._run)], self._statuses)

    def abort(self) -> None:
        """The sink does."""

    def _hand_over(self) -> None:
        if self._part:
            rows, squares = zip(*self._part, strict=True)
            names = [self._tools.cache.table.keys[row] for row in rows]
            self._tools.sink.append([(self._writer, Pixels(np.stack(squares)))], rows, names)
            self._part = []


@dataclass(frozen=True)
class _Boxes:
    """One unit of the boxes over squares."""

    geometry: PixelGeometry
    writer: FileWriter

    def add(self, made: _Made, square: Any) -> None:
        """One row; `square` is None where there is none."""
        boxes = square or _NO_BOXES
        cells = (boxes.corners.ravel().tolist(), boxes.classes.tolist(), boxes.crowd.tolist())
        self.writer.add(made.row, made.status, made.reason, *cells)

    def commit(self) -> None:
        """See FileWriter."""
        self.writer.commit()

    def abort(self) -> None:
        """See FileWriter."""
        self.writer.abort()
