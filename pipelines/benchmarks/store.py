"""Reads and writes of a store of ViT-B tokens: ours, raw system calls, tensorstore and zarr-python, side by side.

Run:     python pipelines/benchmarks/store.py [--images 640] [--dir DIR] [--pairs 7]
Needs:   the extra `test` (tensorstore); disk for the store and one shard, page cache for both: 3.6 MB an image, 2.3 GB.
Expect:  lines with a goal say whether it was reached; three minutes with --pairs 15.
         Seen on a virtual machine with 2 EPYC cores, idle, --pairs 15, 1 / 4 taps: 0.97 / 0.86 of raw after first
         touch, 0.75 / 0.69 at first touch, 4.3 / 7.8 x tensorstore, 28 / 16 x zarr-python's best form (one stepped
         slice fetches all 4 evenly spaced taps, which misses the goal of 20; tap by tap it is 37 x); writing 0.86.
Store:   images x 12 taps x 14 x 14 x 768 float16, 256 images a shard, crc32c with every chunk (format 1).
Method:  the limit is os.preadv of the same bytes into one reused buffer by two threads, or write + fsync of the same
         bytes. It and ours take turns in alternating order; a ratio is the median of the pairs' ratios. Each image and
         tap carries stamps that are compared after the clock has stopped. WARM, each turn reads a random batch of its
         own: the second reader of the same one would find it in the processor's cache. As root, COLD drops the whole
         page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clock import Evictor, alternate, print_machine, ratio_text, timed

from loffta.store.ledger import OK, ImageStatus
from loffta.store.metadata import ArrayLayout, grid_layout
from loffta.store.paths import ArrayPaths
from loffta.store.reader import ArrayReader
from loffta.store.shard import ShardWriter
from loffta.store.units import count_units, rows_of
from loffta.store.writer import Stored, UnitWriter

N_TAPS, SIDE, DIM, UNIT = 12, 14, 768, 256
BATCH = 64
THREADS = 2  # as many as the feed uses for a warm store
WRITE_BATCH = 32  # images per append, as an extraction would
TURNS = ("raw", "ours", "raw again", "first")
SHORT_PAIRS = 8  # times --pairs, for the reads that take milliseconds: one pair alone says little
SLOW_REPEATS = 3  # of rivals that take a second a batch
TAP_SETS: dict[str, tuple[int, ...]] = {"1 tap": (11,), "4 taps": (2, 5, 8, 11)}


def main() -> None:
    """Makes the store in a temporary folder, measures, prints and deletes it."""
    parser = argparse.ArgumentParser(
        description="store benchmark: ours against raw system calls, tensorstore, zarr-python"
    )
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the temporary folder goes (default: the system's)"
    )
    parser.add_argument("--pairs", type=int, default=7, help="interleaved repeats")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-", dir=options.dir))
    try:
        print_machine(("numpy", "zarr", "tensorstore", "crc32c"))
        store_gb = options.images * N_TAPS * SIDE * SIDE * DIM * 2 / 1e9
        print(f"{options.images} images, {store_gb:.2f} GB; {shutil.disk_usage(folder).free / 1e9:.0f} GB free")
        array = make_store(folder / "store", options.images)
        header("WARM random batches of 64 images, GB/s")
        for name, taps in TAP_SETS.items():
            measure_reads(array, name, taps, options.pairs)
        header(f"COLD random batches, GB/s ({Evictor(array.folder.glob('c.*')).how})")
        for name, taps in TAP_SETS.items():
            measure_cold(array, name, taps, options.pairs)
        shutil.rmtree(folder / "store")
        header("WRITE of one shard, flushed to disk, GB/s")
        measure_writes(folder, min(options.images, UNIT), options.pairs)
    finally:
        shutil.rmtree(folder)


# -- the store and its stamps


def make_tokens(first: int, n_images: int) -> np.ndarray:
    """[n, 12, 14, 14, 768] float16 noise; image and tap number stand in the first and last cell of each tap."""
    noise = np.random.default_rng(0).standard_normal((SIDE, SIDE, DIM), dtype=np.float32).astype(np.float16)
    tokens = np.broadcast_to(noise, (n_images, N_TAPS, SIDE, SIDE, DIM)).copy()
    for corner in (0, -1):
        tokens[:, :, corner, corner, 0] = (first + np.arange(n_images))[:, None]
        tokens[:, :, corner, corner, 1] = np.arange(N_TAPS)
    return tokens


def check_stamps(values: np.ndarray, rows: np.ndarray, taps: Sequence[int]) -> None:
    """Raises where a batch is not the images and taps that were asked for."""
    for corner in (0, -1):
        cell = values[:, :, corner, corner]
        if not ((cell[..., 0] == rows[:, None]).all() and (cell[..., 1] == np.asarray(taps)).all()):
            raise SystemExit("a reader returned wrong values")


def make_layout(n_images: int) -> ArrayLayout:
    """Format 1's layout of the tokens."""
    return grid_layout(
        n_images, (N_TAPS, SIDE, SIDE, DIM), np.float16, UNIT, kind="grid", taps=[f"blocks.{i}" for i in range(N_TAPS)]
    )


def make_store(folder: Path, n_images: int) -> ArrayPaths:
    """Writes the store with loffta's own writer."""
    paths, layout = ArrayPaths("store", folder, folder.with_name("done")), make_layout(n_images)
    folder.mkdir()
    paths.metadata.write_bytes(layout.to_json())
    for unit in range(count_units(n_images, UNIT)):
        rows, writer = rows_of(unit, n_images, UNIT), UnitWriter(paths, layout, unit)
        for first in rows[::WRITE_BATCH]:
            batch = range(first, min(first + WRITE_BATCH, rows.stop))
            audit = np.ones((len(batch), N_TAPS))
            stored = Stored(make_tokens(first, len(batch)), audit.astype(bool), audit.astype(np.float32))
            writer.append(batch, stored, [f"image {row}" for row in batch])
        writer.commit([ImageStatus(row, OK) for row in rows], {})
    return paths


# -- reading


class RawReader:
    """The limit: the same bytes with os.preadv from open files, offsets known, two threads, one ready buffer."""

    def __init__(self, array: ArrayPaths, pool: ThreadPoolExecutor) -> None:
        reader = ArrayReader(array)
        units = count_units(reader.layout.shape[0], UNIT)
        self.offsets = [reader.shard_index(unit)[:, 0].tolist() for unit in range(units)]
        self.fds = [os.open(array.shard(unit, 5), os.O_RDONLY) for unit in range(units)]
        self.pool, self.size = pool, reader.layout.chunk_bytes

    def plan(self, rows: np.ndarray, taps: Sequence[int], out: np.ndarray) -> list[list[tuple[int, memoryview, int]]]:
        """Calls to make, per thread, in file order; made before the clock starts."""
        target = out.reshape(-1).view(np.uint8).data
        calls = []
        for i, row in enumerate(rows.tolist()):
            unit, within = divmod(row, UNIT)
            for j, tap in enumerate(taps):
                place = (i * len(taps) + j) * self.size
                calls.append(
                    (self.fds[unit], target[place : place + self.size], self.offsets[unit][within * N_TAPS + tap])
                )
        calls.sort(key=lambda call: (call[0], call[2]))
        half = len(calls) // THREADS
        return [calls[:half], calls[half:]]

    def run(self, plan: list[list[tuple[int, memoryview, int]]]) -> None:
        """Makes the calls."""
        list(self.pool.map(read_calls, plan))

    def close(self) -> None:
        """Closes the files."""
        for fd in self.fds:
            os.close(fd)


def read_calls(calls: list[tuple[int, memoryview, int]]) -> None:
    """One thread's share."""
    for fd, view, offset in calls:
        if os.preadv(fd, [view], offset) != len(view):
            raise SystemExit("short read: measure on a local disk")


def measure_reads(array: ArrayPaths, name: str, taps: tuple[int, ...], n_pairs: int) -> None:
    """Warm: everything is in the page cache, buffers are reused, files are open."""
    rng = np.random.default_rng(1)
    reader = ArrayReader(array)
    n_images = reader.layout.shape[0]
    everything = np.arange(n_images)
    out = reader.empty(BATCH, taps)  # one for all: the buffer used most would stay in the processor's cache
    for part in np.array_split(everything, max(1, n_images // BATCH)):
        reader.read(part, taps)  # the first touch: the page cache is warm and every crc has been checked
    with ThreadPoolExecutor(THREADS) as pool:
        raw = RawReader(array, pool)
        warm, first, stores = [], [], []
        rivals = (tensorstore_reader(array), *zarr_readers(array))
        for repeat in range(n_pairs * SHORT_PAIRS + 1):  # the first pair warms up
            turns = dict(zip(TURNS, (rng.permutation(n_images)[:BATCH] for _ in TURNS), strict=True))
            plans = {turn: raw.plan(turns[turn], taps, out) for turn in ("raw", "raw again")}
            fresh = ArrayReader(array)
            fresh.read(everything[::UNIT], [0])  # opens the shards: first touch is about the chunks
            jobs: dict[str, Callable[[], Any]] = {
                "raw": partial(raw.run, plans["raw"]),
                "ours": partial(reader.read, turns["ours"], taps, out, pool=pool, n_parts=THREADS),
                "raw again": partial(raw.run, plans["raw again"]),
                "first": partial(fresh.read, turns["first"], taps, out, pool=pool, n_parts=THREADS),
            }
            seconds = alternate(jobs, repeat, after=lambda turn, turns=turns: check_stamps(out, turns[turn], taps))
            if repeat:
                warm.append((seconds["raw"], seconds["ours"]))
                first.append((seconds["raw again"], seconds["first"]))
        for rival in rivals:
            pairs = []
            for repeat in range((n_pairs if rival.fast else SLOW_REPEATS) + 1):
                rows, own_rows = (rng.permutation(n_images)[:BATCH] for _ in range(2))
                results: list[np.ndarray] = []
                turn: dict[str, Callable[[], Any]] = {
                    "rival": lambda rows=rows, results=results, rival=rival: results.append(rival.read(rows, taps)),
                    "ours": partial(reader.read, own_rows, taps, out, pool=pool, n_parts=THREADS),
                }
                seconds = alternate(turn, repeat)
                check_stamps(results[0], rows, taps)
                check_stamps(out, own_rows, taps)
                if repeat:
                    pairs.append((seconds["rival"], seconds["ours"]))
            stores.append((rival, pairs))
        raw.close()
    size = out.nbytes
    line(f"{name}: raw preadv, {THREADS} threads", size, [a for a, _ in warm])
    line(f"{name}: loffta, after first touch", size, [b for _, b in warm], "of raw", warm, 0.85)
    line(f"{name}: loffta, first touch with crc", size, [b for _, b in first], "of raw", first, 0.65)
    best_zarr = min((s for s in stores if s[0].zarr), key=lambda s: statistics.median(a for a, _ in s[1]))
    for rival, pairs in stores:
        goal = (20.0 if (rival, pairs) == best_zarr else None) if rival.zarr else 3.0
        line(f"{name}: {rival.name}", size, [a for a, _ in pairs], "x slower", pairs, goal)


class Rival:
    """Another library's way to read a batch."""

    def __init__(
        self, name: str, read: Callable[[np.ndarray, Sequence[int]], np.ndarray], *, fast: bool, zarr: bool
    ) -> None:
        self.name, self.read, self.fast, self.zarr = name, read, fast, zarr


def tensorstore_reader(array: ArrayPaths) -> Rival:
    """tensorstore's fastest form here: one request for all rows and taps."""
    import tensorstore

    opened = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{array.folder}/"}, read=True).result()
    return Rival(
        "tensorstore", lambda rows, taps: opened.oindex[rows, list(taps)].read().result(), fast=True, zarr=False
    )


def zarr_readers(array: ArrayPaths) -> list[Rival]:
    """zarr-python's forms: a loop over images and taps, and orthogonal indexing."""
    import zarr

    opened: Any = zarr.open_array(store=array.folder, mode="r")

    def loop(rows: np.ndarray, taps: Sequence[int]) -> np.ndarray:
        out = np.empty((len(rows), len(taps), *opened.shape[2:]), opened.dtype)
        for i, row in enumerate(rows.tolist()):
            for j, tap in enumerate(taps):
                out[i, j] = opened[row, tap]
        return out

    def spans(rows: np.ndarray, taps: Sequence[int]) -> np.ndarray:
        """One request an image, for the taps' slice: they are evenly spaced."""
        out = np.empty((len(rows), len(taps), *opened.shape[2:]), opened.dtype)
        wanted = slice(taps[0], taps[-1] + 1, taps[1] - taps[0] if len(taps) > 1 else 1)
        for i, row in enumerate(rows.tolist()):
            out[i] = opened[row, wanted]
        return out

    return [
        Rival("zarr-python, z[i, tap] in a loop", loop, fast=False, zarr=True),
        Rival("zarr-python, z[i, a:b:step] in a loop", spans, fast=False, zarr=True),
        Rival("zarr-python, oindex", lambda rows, taps: opened.oindex[rows, list(taps)], fast=False, zarr=True),
    ]


def measure_cold(array: ArrayPaths, name: str, taps: tuple[int, ...], n_pairs: int) -> None:
    """The same batches from the disk; files are open and indexes parsed, as in the middle of an epoch."""
    rng, evict = np.random.default_rng(2), Evictor(array.folder.glob("c.*"))
    reader = ArrayReader(array)
    n_images = reader.layout.shape[0]
    out, limit_out = reader.empty(BATCH, taps), reader.empty(BATCH, taps)
    with ThreadPoolExecutor(THREADS) as pool:
        raw, pairs = RawReader(array, pool), []
        for repeat in range(n_pairs):
            rows = rng.permutation(n_images)[:BATCH]
            plan = raw.plan(rows, taps, limit_out)
            reader.read(rows, taps, out)  # opens the shards and checks the crcs
            seconds = alternate(
                {
                    "raw": lambda plan=plan: raw.run(plan),
                    "ours": lambda rows=rows: reader.read(rows, taps, out, pool=pool, n_parts=THREADS),
                },
                repeat,
                before=evict,
            )
            check_stamps(out, rows, taps)
            pairs.append((seconds["raw"], seconds["ours"]))
        raw.close()
    line(f"{name}: raw preadv, {THREADS} threads", out.nbytes, [a for a, _ in pairs])
    line(f"{name}: loffta", out.nbytes, [b for _, b in pairs], "of raw", pairs)


# -- writing


def measure_writes(folder: Path, n_images: int, n_pairs: int) -> None:
    """One full shard per turn, from batches in memory to durable bytes."""
    layout = make_layout(n_images)
    batch = make_tokens(0, WRITE_BATCH)
    batches = [batch] * (n_images // WRITE_BATCH)
    size = batch.nbytes * len(batches)
    target = folder / "write"
    writers: dict[str, Callable[[], None]] = {
        "raw": lambda: write_raw(target, batches),
        "ours": lambda: write_ours(target, batches),
        "tensorstore": lambda: write_tensorstore(target, batches, layout),
        "zarr": lambda: write_zarr(target, batches, layout),
    }
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for repeat in range(n_pairs):
        names = list(writers)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            os.sync()
            seconds[name].append(timed(writers[name]))
            check_written(target, name, layout, batches)
    shutil.rmtree(target)
    ours = seconds["ours"]
    line("raw write + fsync, one file", size, seconds["raw"])
    line("loffta, crc32c and fsync", size, ours, "of raw", list(zip(seconds["raw"], ours, strict=True)), 0.75)
    for name in ("tensorstore", "zarr"):
        pairs = list(zip(seconds[name], ours, strict=True))
        line(name if name != "zarr" else "zarr-python + fsync", size, seconds[name], "x slower", pairs)


def write_raw(target: Path, batches: list[np.ndarray]) -> None:
    """The limit."""
    fd = os.open(target / "raw", os.O_WRONLY | os.O_CREAT)
    for batch in batches:
        view = batch.reshape(-1).view(np.uint8).data
        while view:
            view = view[os.write(fd, view) :]
    os.fsync(fd)
    os.close(fd)


def write_ours(target: Path, batches: list[np.ndarray]) -> None:
    """The shard alone; the done file costs 0.3 ms more."""
    writer = ShardWriter(target / "c.0.0.0.0.0", UNIT * N_TAPS)
    for i, batch in enumerate(batches):
        first, n_chunks = i * WRITE_BATCH * N_TAPS, len(batch) * N_TAPS
        places = writer.reserve(range(first, first + n_chunks), batch.nbytes // n_chunks)
        writer.write(places[0], batch.reshape(n_chunks, -1))
    writer.commit()


def write_tensorstore(target: Path, batches: list[np.ndarray], layout: ArrayLayout) -> None:
    """The whole shard in one transaction: a request per batch would write the shard anew each time."""
    import tensorstore

    (target / "zarr.json").write_bytes(layout.to_json())
    opened = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{target}/"}, write=True).result()
    with tensorstore.Transaction() as transaction:
        view = opened.with_transaction(transaction)
        for i, batch in enumerate(batches):
            view[i * WRITE_BATCH : (i + 1) * WRITE_BATCH].write(batch).result()


def write_zarr(target: Path, batches: list[np.ndarray], layout: ArrayLayout) -> None:
    """The whole shard at once, then fsync, which zarr-python leaves out."""
    import zarr

    (target / "zarr.json").write_bytes(layout.to_json())
    opened: Any = zarr.open_array(store=target, mode="r+")
    opened[:] = np.concatenate(batches)
    fd = os.open(target / "c.0.0.0.0.0", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def check_written(target: Path, name: str, layout: ArrayLayout, batches: list[np.ndarray]) -> None:
    """Reads some of what was written."""
    if name == "raw":
        with (target / "raw").open("rb") as file:
            values = np.frombuffer(file.read(batches[0].nbytes), np.float16).reshape(batches[0].shape)
    else:
        (target / "zarr.json").write_bytes(layout.to_json())
        values = ArrayReader(ArrayPaths("written", target, target)).read(np.arange(WRITE_BATCH))
    check_stamps(values, np.arange(WRITE_BATCH), range(N_TAPS))


# -- table


def header(title: str) -> None:
    """A table's head."""
    print(f"\n{title:<47} {'median':>8} {'range':>15} ratio (range)", flush=True)


def line(
    name: str,
    n_bytes: int,
    seconds: list[float],
    what: str = "",
    pairs: list[tuple[float, float]] | None = None,
    goal: float | None = None,
) -> None:
    """One line: rate, and the median over the pairs of (first / second) seconds beside its goal."""
    rates = sorted(n_bytes / s / 1e9 for s in seconds)
    text = f"  {name:<45} {statistics.median(rates):8.3f} {f'{rates[0]:.3f}-{rates[-1]:.3f}':>15}"
    if pairs:
        text += f" {ratio_text(pairs, what, goal)}"
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
