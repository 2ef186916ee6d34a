"""The feed against the direct reader, a training step against one on a resident batch, cold orders, stream-mode memory.

Run:     python pipelines/benchmarks/feed.py [--images 512] [--pairs 7] [--steps 4] [--batch 64] [--dir DIR]
Needs:   4.5 MB of disk an image, and page cache for as much; `--images 64 --pairs 1 --batch 16` tries it out.
Expect:  lines with a goal say whether it was reached; minutes, most of them for ComBo's steps on a CPU.
Caches:  ComBo: grids of 12 taps x 14 x 14 x 768. LOFF-TA: 1 tap x 16 x 16 x 768 as grid and its class token as prefix,
         twice as many images. Both float16, 256 images a unit. Memory: 1 tap x 8 x 8 x 768, 1 and 8 times the images.
Method:  jobs take turns in alternating order; a ratio is the median over the pairs. The feed streams (the prefix, being
         small, is held in memory) with as many threads as the direct reader, which reads the same bytes, batch by batch
         in random order, into one reused buffer. The consumer looks at one value of each batch. A step is prepare,
         forward, backward and AdamW of the head `combo`; one rival takes the same step on one batch that is there,
         the other lets the direct reader read before each step: the limit where the same cores read and compute.
         COLD is an epoch from the disk with 16 threads, windowed against uniform; as root the whole page cache is
         dropped, else the cache's own files. Memory is the kernel's account of a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from clock import Evictor, alternate, print_machine, ratio_text
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.features import Feature, choose_features
from loffta.feed.batches import COLD_THREADS, WARM_THREADS, Feed
from loffta.heads import build_head
from loffta.heads.combo import ComboRecipe
from loffta.machine import process
from loffta.store.cache import Cache
from loffta.store.ledger import OK, ImageStatus
from loffta.store.reader import ArrayReader
from loffta.store.recipe import StoreInfo
from loffta.store.table import ImageTable
from loffta.store.writer import UnitWriter, to_storage
from loffta.tokens import Kind, TokenSpec
from loffta.training.bench_parts import Job, train_step

UNIT, DIM, MODEL = 256, 768, "made-up-vit"
FEED_GOAL, STEP_GOAL = 0.9, 0.95


@dataclass(frozen=True)
class Shape:
    """Tokens of one cache."""

    name: str
    n_taps: int
    side: int
    kinds: tuple[Kind, ...]


COMBO = Shape("ComBo: 12 taps x 196 tokens x 768", 12, 14, ("grid",))
LOFF_TA = Shape("LOFF-TA: 1 tap x (256 + 1) tokens x 768", 1, 16, ("grid", "prefix"))
SMALL = Shape("1 tap x 64 tokens x 768", 1, 8, ("grid",))


def main() -> None:
    """Makes the caches in a temporary folder, measures, prints and deletes them."""
    parser = argparse.ArgumentParser(description="feed benchmark: the feed against the direct reader")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--steps", type=int, default=4, help="training steps an epoch; a turn has two")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    parser.add_argument("--stream", type=Path, default=None, help=argparse.SUPPRESS)  # a child of measure_memory
    options = parser.parse_args()
    process.cap_threads()
    if options.stream:
        stream_once(options.stream, options.batch)
        return
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-", dir=options.dir))
    try:
        print_machine(("torch", "numpy", "crc32c"))
        for shape, n_images in ((COMBO, options.images), (LOFF_TA, 2 * options.images)):
            features = make_cache(root := folder / "cache", shape, n_images)
            n_bytes = sum(math.prod(feature.array.layout.shape) for feature in features) * 2
            print(f"\n{shape.name}: {n_images} images, {n_bytes / 1e9:.2f} GB, batches of {options.batch}", flush=True)
            measure_feed(features, n_images, options.batch, options.pairs)
            measure_step(features, n_images, options.batch, options.steps, options.pairs)
            measure_orders(root, features, n_images, options.batch, options.pairs)
            shutil.rmtree(root)
        measure_memory(folder, options.images, options.batch)
    finally:
        shutil.rmtree(folder)


def make_cache(
    root: Path, shape: Shape, n_images: int, table: ImageTable | None = None, *, thumb_px: int = 8
) -> list[Feature]:
    """A cache of noise, written by loffta's own writer, and its features; of images of one class, if none are given."""
    keys = [f"{row:06d}.png" for row in range(n_images)] if table is None else table.keys
    zeros = np.zeros(n_images, dtype=np.int64)
    table = table or ImageTable("folder:none", keys, zeros + 1, ["train"] * n_images, zeros, ("one", "two"))
    cache = Cache.create(root, table, unit_images=UNIT, thumb_px=thumb_px)
    specs = tuple(TokenSpec(f"blocks.{i}", shape.side, shape.side, 1, DIM) for i in range(shape.n_taps))
    recipe = {
        "backbone": MODEL,
        "weights": "random:0",
        "input": {"image_px": 16 * shape.side},
        "pool": None,
        "view": None,
        "precision": "fp32",
        "dtype": "float16",
    }
    store = cache.create_store(StoreInfo(recipe, {"backbone": MODEL}, {"spec": "random:0"}, specs))
    rng = np.random.default_rng(0)
    for kind in shape.kinds:
        (array,) = cache.add_arrays(store, kind, specs, "float16")
        tokens = torch.from_numpy(rng.standard_normal((16, *array.layout.item_shape), dtype=np.float32))
        for unit in range(cache.n_units):
            rows, writer = cache.rows_of_unit(unit), UnitWriter(array.paths, array.layout, unit)
            for first in rows[:: len(tokens)]:
                batch = range(first, min(first + len(tokens), rows.stop))
                writer.append(batch, to_storage(tokens[: len(batch)], "float16"), [keys[row] for row in batch])
            writer.commit([ImageStatus(row, OK) for row in rows], {})
    return choose_features(Cache.open(root), [], shape.kinds, default_taps="all")


def open_feed(features: Sequence[Feature], n_images: int, batch_size: int, n_threads: int, **options) -> Feed:
    """A feed that streams."""
    rows = np.arange(n_images)
    return Feed(features, rows, batch_size=batch_size, mode="stream", n_threads=n_threads, **options)


class DirectReader:
    """The rival: reads features batch by batch into the same buffers, nothing at a time with anything else."""

    def __init__(self, features: Sequence[Feature], batch_size: int, pool: ThreadPoolExecutor) -> None:
        self._readers = [ArrayReader(feature.array.paths) for feature in features]
        self._out = [reader.empty(batch_size) for reader in self._readers]
        self._pool = pool

    def batches(self, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, ...]]:
        """One tensor per feature."""
        batch_size = len(self._out[0])
        for first in range(0, len(rows), batch_size):
            here = rows[first : first + batch_size]
            buffers = [buffer[: len(here)] for buffer in self._out]
            for reader, buffer in zip(self._readers, buffers, strict=True):
                reader.read(here, None, buffer, pool=self._pool, n_parts=WARM_THREADS)
            yield tuple(torch.from_numpy(buffer) for buffer in buffers)


def look_at(features: Sequence[Tensor]) -> float:
    """The trivial consumer."""
    return sum(float(tensor.reshape(-1)[0]) for tensor in features)


def measure_feed(features: Sequence[Feature], n_images: int, batch_size: int, n_pairs: int) -> None:
    """An epoch of batches, warm, against the reader alone."""
    rng, numbers = np.random.default_rng(1), iter(range(10**9))
    with (
        open_feed(features, n_images, batch_size, WARM_THREADS, order="uniform") as feed,
        ThreadPoolExecutor(WARM_THREADS) as pool,
    ):
        direct = DirectReader(features, batch_size, pool)
        jobs: dict[str, Callable[[], object]] = {
            "direct": lambda: [look_at(batch) for batch in direct.batches(rng.permutation(n_images))],
            "feed": lambda: [look_at(batch.features) for batch in feed.epoch(next(numbers))],
        }
        alternate(jobs, 0)  # fills the page cache and checks every checksum
        found = [alternate(jobs, repeat) for repeat in range(n_pairs)]
    print_rates(found, n_images)
    print(f"  {ratio_text([(s['direct'], s['feed']) for s in found], 'of the direct reader', FEED_GOAL)}", flush=True)


def measure_step(features: Sequence[Feature], n_images: int, batch_size: int, n_steps: int, n_pairs: int) -> None:
    """Steps on batches from the feed, on batches read just before them, and on one batch over and over."""
    grids = [feature for feature in features if feature.spec.kind == "grid"]
    specs = [feature.spec for feature in grids]
    recipe = ComboRecipe().resolve(specs)
    head = build_head("combo", specs, 2, recipe, 0).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    job = Job(grids, np.arange(n_images), head, recipe, optimizer, torch.device("cpu"), batch_size)
    # whole batches alone, and two epochs a turn: the feed reads into the second one, but not from turn to turn
    n_fed = min(n_steps, n_images // batch_size) * batch_size
    rows, numbers = np.random.default_rng(2).permutation(n_images)[:n_fed], iter(range(10**9))
    with (
        Feed(grids, rows, batch_size=batch_size, mode="stream", n_threads=WARM_THREADS) as feed,
        ThreadPoolExecutor(WARM_THREADS) as pool,
    ):
        direct = DirectReader(grids, batch_size, pool)
        resident = tuple(tensor.clone() for tensor in next(feed.in_order()).features)

        def from_feed() -> Iterator[tuple[Tensor, ...]]:
            first = next(numbers)
            for epoch, more in ((2 * first, True), (2 * first + 1, False)):
                for batch in feed.epoch(epoch, more=more):
                    yield batch.features

        def take_steps(batches: Iterable[tuple[Tensor, ...]]) -> None:
            for batch in batches:
                train_step(job, head.prepare(batch))

        jobs: dict[str, Callable[[], object]] = {
            "resident batch": lambda: take_steps(itertools.repeat(resident, 2 * len(feed))),
            "read, then step": lambda: take_steps(direct.batches(np.tile(rows, 2))),
            "with the feed": lambda: take_steps(from_feed()),
        }
        alternate(jobs, 0)
        found = [alternate(jobs, repeat) for repeat in range(n_pairs)]
        print_rates(found, 2 * n_fed)
        for rival, goal in (("resident batch", STEP_GOAL), ("read, then step", None)):
            pairs = [(s[rival], s["with the feed"]) for s in found]
            print(f"  {ratio_text(pairs, f'of the rate of: {rival}', goal)}", flush=True)


def measure_orders(root: Path, features: Sequence[Feature], n_images: int, batch_size: int, n_pairs: int) -> None:
    """Cold epochs in both orders."""
    numbers = iter(range(10**9))
    evict = Evictor(root.glob("stores/*/*/c.*"))
    print(f"  COLD ({evict.how})")
    with (
        open_feed(features, n_images, batch_size, COLD_THREADS, order="uniform") as uniform,
        open_feed(features, n_images, batch_size, COLD_THREADS, order="windowed") as windowed,
    ):
        jobs: dict[str, Callable[[], object]] = {
            "uniform": lambda: [look_at(batch.features) for batch in uniform.epoch(next(numbers))],
            "windowed": lambda: [look_at(batch.features) for batch in windowed.epoch(next(numbers))],
        }
        alternate(jobs, 0)  # opens the shards and checks every checksum
        found = [alternate(jobs, repeat, before=evict) for repeat in range(n_pairs)]
        print_rates(found, n_images)
        print(f"  {ratio_text([(s['uniform'], s['windowed']) for s in found], 'times the uniform rate, windowed')}")
        print(f"  {windowed.describe().rpartition('; ')[2]}", flush=True)


def measure_memory(folder: Path, n_images: int, batch_size: int) -> None:
    """Largest resident memory of an epoch that streams, as processes of their own."""
    print(f"\nlargest resident memory of an epoch in stream mode ({SMALL.name})", flush=True)
    peaks = []
    for n in (n_images, 8 * n_images):
        make_cache(root := folder / f"memory-{n}", SMALL, n)
        command = [sys.executable, __file__, "--stream", str(root), "--batch", str(batch_size)]
        peaks.append(float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        print(f"  {n:6} images: {peaks[-1]:.0f} MiB", flush=True)
        shutil.rmtree(root)
    print(f"  eight times the images: {peaks[1] / peaks[0]:.2f} times the memory", flush=True)


def stream_once(root: Path, batch_size: int) -> None:
    """What a child of `measure_memory` does; prints its largest resident memory, MiB."""
    cache = Cache.open(root)
    features = choose_features(cache, [], SMALL.kinds, default_taps="all")
    with open_feed(features, len(cache.table), batch_size, WARM_THREADS) as feed:
        for batch in feed.epoch(0):
            look_at(batch.features)
    # not getrusage: what it says of a child counts the parent's memory until the child's exec
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


def print_rates(found: Sequence[dict[str, float]], n_images: int) -> None:
    """The median rate of each job."""
    rates = {name: statistics.median(n_images / s[name] for s in found) for name in found[0]}
    print("  " + ", ".join(f"{name} {rate:,.1f} images/s" for name, rate in rates.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
