"""What commands do with a cache of many images, each step in a process of its own: CPU and wall seconds, and memory.

Run by `scale_growth`: python scale_steps.py STEP CACHE.   Out: one line of JSON, names to numbers. `_s` are CPU seconds
of all threads, about the same on a busy machine; `_wall` are seconds of the clock, with other programs' turns in them.
Memory is the peak in /proc/self/status: getrusage's outlives exec, so that it would be the peak of whoever started it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sparse_cache import options

from loffta.backbones import Backbone
from loffta.config import BackboneConfig
from loffta.dataset.features import choose_features, usable_rows
from loffta.extraction.begin import begin
from loffta.extraction.extract import extract
from loffta.extraction.plan import make_plan
from loffta.feed.batches import Feed
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.inventory import take_inventory
from loffta.store.paths import CachePaths
from loffta.store.table import ImageTable
from loffta.store.verify import verify

BATCH, N_BATCHES, WORKERS = 64, 200, 1000
T = TypeVar("T")
SHARE = (7, WORKERS)
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Listed:
    """An image set whose listing is at hand: what listing a folder takes is the file system's affair."""

    def __init__(self, root: Path) -> None:
        self.table = ImageTable.read(Cache.open(root).paths.images)

    def listing(self) -> ImageTable:
        """As a source gives it."""
        return self.table

    def read(self, key: str) -> bytes:
        """Nothing is read: all units are there."""
        raise FileNotFoundError(key)


def table(root: Path) -> dict[str, float]:
    """The table of images, as every command reads it, and the rows of a split."""
    path = CachePaths(root).images
    images, opened = timed("open", lambda: ImageTable.read(path))
    rows, chosen = timed("split", lambda: images.rows_of("train"))
    assert 0 < len(rows) < len(images), "there are two splits"
    return {"table_mb": path.stat().st_size / 1e6} | opened | chosen


def ledger(root: Path) -> dict[str, float]:
    """The done files of one array, as training reads them."""
    array = Cache.open(root).stores()[0].arrays[0]
    found, seconds = timed("ledger", lambda: array.ledger)
    assert found.ready.all(), "the cache is finished"
    return seconds


def feed(root: Path) -> dict[str, float]:
    """What `train` does before its first batch, and batches of random images from the disk."""
    cache = Cache.open(root)
    features = choose_features(cache, [], ("mean",), default_taps="all")
    rows, chosen = timed("rows", lambda: usable_rows(cache, features, "train"))
    with Feed(features, rows, batch_size=BATCH, mode="stream", order="uniform") as batches:
        epoch = batches.epoch(0)
        _, first = timed("first_batch", lambda: next(epoch))
        n_batches, taken = timed("batches", lambda: sum(1 for _ in islice(epoch, N_BATCHES)))
    if n_batches:  # a small set has but the first
        first |= {"batch_ms": 1000 * taken["batches_s"] / n_batches}
        first |= {"batch_wall_ms": 1000 * taken["batches_wall"] / n_batches}
    return chosen | first


def worker(root: Path) -> dict[str, float]:
    """What one of 1,000 workers does in a finished cache: its start, and all of it."""
    source, config = Listed(root), options(root, SHARE)
    begun, start = timed("worker_start", lambda: begin(config, source.listing(), no_network, read=source.read))
    n_units = len(begun.asked)
    del begun
    _, whole = timed("worker", lambda: extract(config, source, no_network, StopFlag()))
    return {"units_of_a_worker": n_units} | start | whole


def plan(root: Path) -> dict[str, float]:
    """`loffta plan` of what is there, without a sample."""
    source = Listed(root)
    found, seconds = timed("plan", lambda: make_plan(options(root), source, no_network, sample=0))
    assert found.images_missing == 0, "the cache is finished"
    return seconds


def info(root: Path) -> dict[str, float]:
    """`loffta info`."""
    cache = Cache.open(root)
    return timed("info", lambda: take_inventory(cache))[1]


def check(root: Path) -> dict[str, float]:
    """`loffta verify` without --deep."""
    cache = Cache.open(root)
    faults, seconds = timed("verify", lambda: list(verify(cache)))
    assert not faults, faults[:3]
    return seconds


STEPS: dict[str, Callable[[Path], dict[str, float]]] = {
    "table": table,
    "ledger": ledger,
    "feed": feed,
    "worker": worker,
    "plan": plan,
    "info": info,
    "verify": check,
}


def no_network(config: BackboneConfig) -> Backbone:
    """Finished stores load none."""
    raise AssertionError(f"{config.name} was loaded though nothing is missing")


def timed(name: str, action: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `action` gives, and its seconds: `<name>_s` of the CPU, `<name>_wall` of the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, {f"{name}_s": time.process_time() - cpu, f"{name}_wall": time.perf_counter() - wall}


def run(step: str, root: Path) -> dict[str, float]:
    """One step; `<step>_mib` is the peak of memory beside the libraries."""
    before = memory_mib("VmRSS")
    CLEAR_REFS.write_text("5")  # the peak begins anew, from what is there now (man 5 proc)
    with redirect_stderr(StringIO()):
        found = STEPS[step](root)
    return found | {f"{step}_mib": memory_mib("VmHWM") - before}


def memory_mib(name: str) -> float:
    """A line of this process's status, as MiB."""
    return int(STATUS.read_text().partition(f"{name}:")[2].split()[0]) / 2**10


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
