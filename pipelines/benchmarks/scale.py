"""A cache of 100,000 images: how many files, how long to open it, and does a batch cost more than with 1,000?

Run:     python pipelines/benchmarks/scale.py [--images 100000] [--dir DIR] [--side 14] [--repeats 7]
         python pipelines/benchmarks/scale.py --growth [--quick] [...]: other sizes, step by step (`scale_growth`)
Needs:   disk for one shard of each array (0.93 GB with --side 14, 77 MB with --side 4): all units are hard links to it.
Expect:  lines with a goal say whether it was reached; three minutes, most of it for making the cache.
         Seen on two cores that ten other processes wanted: 3,135 files; a batch of 64 random images takes 1.2 times as
         long as with 1,000 images.
Store:   images x 12 taps x side x side x 768 float16 as grid, prefix and mean, 256 images a unit; thumbnails. Every
         done file is real: own rows, hashes and checksums. The features are those of one unit, over and over.
Method:  opening: a fresh process each time, without its imports. Batches: reads of random rows of one tap, warm, shards
         open, no checksums, from a cache of 1,000 images and the big one in turn; the bytes are the same, so the ratio
         is what the number of images costs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scale_growth
import torch

from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, Audit, ImageStatus, write_done
from loffta.store.reader import ArrayReader
from loffta.store.recipe import StoreInfo
from loffta.store.table import ImageTable
from loffta.store.writer import UnitWriter, to_storage
from loffta.tokens import KINDS, TokenSpec

N_TAPS, DIM, UNIT, THUMB_PX = 12, 768, 256, 112
SMALL, BATCH = 1000, 64
OPEN = """
import sys, time
from pathlib import Path
from loffta.dataset.features import choose_features, usable_rows
from loffta.store.inventory import take_inventory
from loffta.store.cache import Cache
root, start = Path(sys.argv[1]), time.perf_counter()
cache = Cache.open(root)
ledgers = [array.ledger for array in cache.stores()[0].arrays]
opened = time.perf_counter()
assert all(ledger.ready.all() for ledger in ledgers)
features = choose_features(Cache.open(root), [], ("grid",), default_taps="all")
usable_rows(cache, features, "train")
trained = time.perf_counter()
take_inventory(Cache.open(root))
print(opened - start, trained - opened, time.perf_counter() - trained)
"""


def main() -> None:
    """Makes both caches in a temporary folder, measures, prints and deletes them."""
    parser = argparse.ArgumentParser(description="scale benchmark: opening and reading 100,000 images")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the temporary folder goes (default: the system's)"
    )
    parser.add_argument("--side", type=int, default=14, help="rows and columns of the grid")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loffta-scale-", dir=options.dir))
    try:
        big = make_cache(folder / "big", options.images, options.side)
        small = make_cache(folder / "small", SMALL, options.side)
        load = os.getloadavg()[0]
        print(f"{options.images} images, grid {options.side} x {options.side}, {os.cpu_count()} CPUs, load {load:.1f}")
        n_files = sum(path.is_file() for path in big.paths.root.rglob("*"))
        line("files of the cache", n_files, 10_000, "")
        opening = [open_once(big.paths.root) for _ in range(options.repeats)]
        opened, trained, informed = (statistics.median(column) for column in zip(*opening, strict=True))
        line("Cache.open and the ledgers of one head's arrays", opened, 1.0, "s")
        line("what `train` adds before its first batch", trained, None, "s")
        line("what `info` tells", informed, None, "s")
        measure_batches(small, big, options.repeats)
    finally:
        shutil.rmtree(folder)


def make_cache(root: Path, n_images: int, side: int) -> Cache:
    """A finished cache whose units are hard links to the first one's shards."""
    keys = [f"class/{row:08d}.jpg" for row in range(n_images)]
    labels = np.arange(n_images) % 100
    classes = tuple(f"class {i}" for i in range(100))
    table = ImageTable("folder:images", keys, np.arange(n_images) + 1000, ["train"] * n_images, labels, classes)
    cache = Cache.create(root, table, unit_images=UNIT, thumb_px=THUMB_PX)
    specs = tuple(TokenSpec(f"blocks.{i}", side, side, 1, DIM) for i in range(N_TAPS))
    recipe = {"backbone": "vit", "weights": "0" * 32, "input": {"image_px": 224}, "dtype": "float16"}
    request = {"backbone": "vit", "weights": "hub", "image_px": None, "dtype": "float16"}
    store = cache.create_store(StoreInfo(recipe, request, {"spec": "hub"}, specs))
    arrays = [array for kind in KINDS for array in cache.add_arrays(store, kind, specs, "float16")]
    for array in [cache.thumbs(create=True), *arrays]:
        fill(cache, array)
    return Cache.open(root)


def fill(cache: Cache, array: CachedArray) -> None:
    """One real shard, links for the other units, and a done file for each."""
    rng = np.random.default_rng(0)
    layout, n_taps = array.layout, len(array.taps)
    writer = UnitWriter(array.paths, layout, 0)
    for row in range(UNIT):
        values = torch.from_numpy(rng.standard_normal((1, *layout.item_shape), dtype=np.float32))
        stored = to_storage(values, "float16")
        if layout.dtype == np.uint8:
            stored = stored._replace(values=np.zeros((1, *layout.item_shape), np.uint8))
        writer.append([row], stored, [cache.table.keys[row]])
    writer.commit([ImageStatus(row, OK) for row in range(UNIT)], {})
    first, fsync = array.paths.shard(0, layout.ndim), os.fsync
    os.fsync = lambda _: None  # of a thousand done files that are deleted in a minute
    try:
        for unit in range(cache.n_units):
            rows = cache.rows_of_unit(unit)
            images = [ImageStatus(row, OK, "", 500, 375, rng.bytes(16).hex()) for row in rows]
            crcs = rng.integers(2**32, size=(len(rows), layout.chunks_per_image)).tolist()
            peaks = rng.random((len(rows), n_taps)).tolist()
            audits = [Audit([True] * n_taps, peak, crc) for peak, crc in zip(peaks, crcs, strict=True)]
            write_done(array.paths, unit, images, audits, {"batch_size": 32, "device": "cpu", "versions": {}})
            if unit:
                os.link(first, array.paths.shard(unit, layout.ndim))
    finally:
        os.fsync = fsync


def open_once(root: Path) -> tuple[float, ...]:
    """Seconds of opening, of what train adds, and of info, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", OPEN, str(root)], capture_output=True, text=True, check=True)
    return tuple(float(word) for word in done.stdout.split())


def measure_batches(small: Cache, big: Cache, repeats: int) -> None:
    """Random batches of one tap from both, in turn."""
    readers = {name: grid_reader(cache) for name, cache in (("small", small), ("big", big))}
    rng = np.random.default_rng(1)
    out = readers["big"].empty(BATCH, [N_TAPS - 1])
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for reader in readers.values():
        for part in np.array_split(np.arange(0, reader.layout.shape[0], UNIT), 8):  # opens every shard
            reader.read(part, [N_TAPS - 1])
        reader.read(np.arange(UNIT), [N_TAPS - 1])  # every image of the one shard that all are
    for repeat in range(20 * repeats):
        for name in sorted(readers, reverse=bool(repeat % 2)):
            rows = rng.permutation(readers[name].layout.shape[0])[:BATCH]
            seconds[name].append(timed(lambda reader=readers[name], rows=rows: reader.read(rows, [N_TAPS - 1], out)))
    for name, times in seconds.items():
        n_images = readers[name].layout.shape[0]
        line(f"a batch of {BATCH} of {n_images} images, warm", 1000 * statistics.median(times), None, "ms")
    ratio = statistics.median(b / a for a, b in zip(seconds["small"], seconds["big"], strict=True))
    line("  ratio, big to small", ratio, 1.5, "x")


def grid_reader(cache: Cache) -> ArrayReader:
    """The reader of the grid."""
    (array,) = (array for array in cache.stores()[0].arrays if array.kind == "grid")
    return ArrayReader(array.paths, check="never")


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def line(name: str, value: float, goal: float | None, unit: str) -> None:
    """One line: value, goal, and whether it was reached; less is better."""
    shown = f"{value:,.0f}" if value == int(value) else f"{value:.3f}"
    reached = "" if goal is None else f"   goal at most {goal:g}: {'reached' if value <= goal else 'MISSED'}"
    print(f"  {name:<50} {shown:>10} {unit:<2}{reached}", flush=True)


if __name__ == "__main__":
    if "--growth" in sys.argv:
        scale_growth.main([word for word in sys.argv[1:] if word != "--growth"])
    else:
        main()
