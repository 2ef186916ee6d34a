"""A scan against the direct reader: how much longer than its bytes take does the table of all layers take?

Run:     python pipelines/benchmarks/scan.py [--images 512] [--pairs 7] [--taps 12] [--device cpu] [--dir DIR]
Needs:   302 kB of disk an image and tap, and page cache for as much; `--images 64 --pairs 1 --taps 2` tries it out.
Expect:  lines with a goal say whether it was reached; about 2 minutes on two cores.
Cache:   grids of 14 x 14 x 768 in float16, as a ViT-B at 224 px has them; of noise, in 10 classes; a fifth is tested.
Method:  jobs take turns in alternating order; a ratio is the median over the pairs. The direct reader reads all images
         and taps in order, 16 images at a time with two threads, into one reused buffer, and compares each chunk with
        its checksum, as a scan does: both see every byte for the first time. A scan does all that
         `loffta scan` does: it reads, pools, gathers, fits, predicts, and draws 1,000 resamples for intervals and
         ranks. On a CPU it pools and multiplies on the cores that read; on a GPU these are free for it.
Bound:   on a CPU nothing can be faster than the bytes' own time and, on the same cores, their means and, for ridge, one
         product X^T X of all images per layer. Both are measured in the same pairs, as `pool_mean` and torch do them
         alone. A scan's share of that bound is printed beside the goal: what is missing there costs something once a
         layer (ridge factors a 768 x 768 matrix about six times) or once a scan, whatever the images are.
         For the heads against scikit-learn see probes.py.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from clock import alternate, print_machine, ratio_text
from feed import DirectReader, Shape, make_cache

from loffta.config import HeadName, ScanConfig
from loffta.dataset.features import Feature
from loffta.feed.batches import WARM_THREADS
from loffta.machine import process
from loffta.machine.progress import silenced
from loffta.pooling import pool_mean
from loffta.scanning.scan import scan
from loffta.store.table import ImageTable

GOAL = 0.8
BATCH = 16
N_CLASSES = 10
JOBS: dict[str, tuple[HeadName, ...]] = {
    "knn": ("knn",),
    "ridge": ("ridge",),
    "knn, ncm, ridge": ("knn", "ncm", "ridge"),
}


def main() -> None:
    """Makes the cache in a temporary folder, measures, prints and deletes it."""
    parser = argparse.ArgumentParser(description="scan benchmark: every layer's table against the bytes' own time")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--taps", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    options = parser.parse_args()
    process.cap_threads()
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-", dir=options.dir))
    shape = Shape(f"{options.taps} taps x 196 tokens x 768", options.taps, 14, ("grid",))
    try:
        print_machine(("torch", "numpy", "crc32c"))
        features = make_cache(folder / "cache", shape, options.images, a_table(options.images))
        with ThreadPoolExecutor(WARM_THREADS) as pool, silenced():
            jobs = {"direct": partial(read_all, features, options.images, pool)}
            jobs |= {name: partial(scan_all, folder / "cache", heads, options.device) for name, heads in JOBS.items()}
            for job in jobs.values():  # fills the page cache
                job()
            jobs["means"] = partial(pool_all, features, options.images, pool)
            jobs["products"] = partial(multiply_all, options.taps, options.images)
            times = [alternate(jobs, i) for i in range(options.pairs)]
        seconds = float(np.median([t["direct"] for t in times]))
        n_bytes = options.images * options.taps * 196 * 768 * 2
        print(f"\n{shape.name}, {options.images} images: the direct reader {n_bytes / seconds / 1e9:.1f} GB/s")
        for name, heads in JOBS.items():
            print(ratio_text([(t["direct"], t[name]) for t in times], f"of the direct reader: {name}", GOAL))
            if options.device == "cpu":
                parts = ("direct", "means", *(["products"] if "ridge" in heads else []))
                bounds = [sum(t[part] for part in parts) for t in times]
                reach = float(np.median([t["direct"] / bound for t, bound in zip(times, bounds, strict=True)]))
                pairs = [(bound, t[name]) for t, bound in zip(times, bounds, strict=True)]
                print(ratio_text(pairs, f"of the bound, which is {reach:.2f} of the direct reader"), flush=True)
    finally:
        shutil.rmtree(folder)


def a_table(n_images: int) -> ImageTable:
    """Ten classes in turn; the last fifth is tested."""
    keys = [f"{row:06d}.png" for row in range(n_images)]
    splits = ["train" if row < 0.8 * n_images else "test" for row in range(n_images)]
    classes = tuple(f"class {i}" for i in range(N_CLASSES))
    return ImageTable("folder:none", keys, np.ones(n_images, np.int64), splits, np.arange(n_images) % 10, classes)


def read_all(features: Sequence[Feature], n_images: int, pool: ThreadPoolExecutor) -> None:
    """Every byte, once, compared with its checksum as every first read is."""
    for _ in DirectReader(features, BATCH, pool).batches(np.arange(n_images)):
        pass


def pool_all(features: Sequence[Feature], n_images: int, pool: ThreadPoolExecutor) -> None:
    """The means of as many grids, of one batch over and over, on as many threads as read."""
    grid = torch.zeros((BATCH, len(features[0].spec.taps), *features[0].spec.shape), dtype=torch.float16)
    list(pool.map(lambda _: pool_mean(grid), range(n_images // BATCH)))


def multiply_all(n_taps: int, n_images: int) -> None:
    """A product of all images' vectors with themselves per layer, in float64 as ridge has it."""
    vectors = torch.ones((n_images, 768), dtype=torch.float64)
    for _ in range(n_taps):
        vectors.T @ vectors


def scan_all(cache: Path, heads: tuple[HeadName, ...], device: str) -> None:
    """Every layer."""
    scan(ScanConfig(cache=cache, heads=heads, device=device), process.StopFlag())


if __name__ == "__main__":
    main()
