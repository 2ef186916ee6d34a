"""What commands do with a cache of many images, each step in a process of its own: CPU seconds and memory.

Run by `scale_growth`: python scale_steps.py STEP CACHE.   Out: one line of JSON, names to numbers. CPU seconds of all
threads, for they are about the same on a busy machine; on an idle one a step takes as long or less.
"""

from __future__ import annotations

import json
import resource
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
    images, seconds = timed(lambda: ImageTable.read(path))
    rows, chosen = timed(lambda: images.rows_of("train"))
    assert 0 < len(rows) < len(images), "there are two splits"
    return {"table_mb": path.stat().st_size / 1e6, "open_s": seconds, "split_s": chosen}


def ledger(root: Path) -> dict[str, float]:
    """The done files of one array, as training reads them."""
    array = Cache.open(root).stores()[0].arrays[0]
    found, seconds = timed(lambda: array.ledger)
    assert found.ready.all(), "the cache is finished"
    return {"ledger_s": seconds}


def feed(root: Path) -> dict[str, float]:
    """What `train` does before its first batch, and batches of random images from the disk."""
    cache = Cache.open(root)
    start = time.process_time()
    features = choose_features(cache, [], ("mean",), default_taps="all")
    rows = usable_rows(cache, features, "train")
    chosen = time.process_time()
    with Feed(features, rows, batch_size=BATCH, mode="stream", order="uniform") as batches:
        epoch = batches.epoch(0)
        next(epoch)
        first = time.process_time()
        n_batches = sum(1 for _ in islice(epoch, N_BATCHES))
        batch_s = (time.process_time() - first) / n_batches
    return {"rows_s": chosen - start, "first_batch_s": first - chosen, "batch_ms": 1000 * batch_s}


def worker(root: Path) -> dict[str, float]:
    """What one of 1,000 workers does in a finished cache: its start, and all of it."""
    source, config = Listed(root), options(root, SHARE)
    begun, start_s = timed(lambda: begin(config, source.listing(), no_network, read=source.read))
    n_units = len(begun.asked)
    del begun
    _, whole = timed(lambda: extract(config, source, no_network, StopFlag()))
    return {"units_of_a_worker": n_units, "worker_start_s": start_s, "worker_s": whole}


def plan(root: Path) -> dict[str, float]:
    """`loffta plan` of what is there, without a sample."""
    source = Listed(root)
    found, seconds = timed(lambda: make_plan(options(root), source, no_network, sample=0))
    assert found.images_missing == 0, "the cache is finished"
    return {"plan_s": seconds}


def info(root: Path) -> dict[str, float]:
    """`loffta info`."""
    cache = Cache.open(root)
    return {"info_s": timed(lambda: take_inventory(cache))[1]}


def check(root: Path) -> dict[str, float]:
    """`loffta verify` without --deep."""
    cache = Cache.open(root)
    faults, seconds = timed(lambda: list(verify(cache)))
    assert not faults, faults[:3]
    return {"verify_s": seconds}


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


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What `action` gives, and its CPU seconds."""
    start = time.process_time()
    return action(), time.process_time() - start


def run(step: str, root: Path) -> dict[str, float]:
    """One step; `<step>_mib` is what it takes beside the libraries."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with redirect_stderr(StringIO()):
        found = STEPS[step](root)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return found | {f"{step}_mib": taken / 1024}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
