"""The dense feed against the direct reader, and a training step with it against one on a batch that lies in memory.

Run:     python pipelines/benchmarks/dense.py --feed [--images 256] [--pairs 7]
Needs:   0.6 MB of disk an image, and page cache for as much.
Expect:  see docs/benchmarks.md; lines with a goal say whether it was reached.
Cache:   noise: a grid of 1 tap x 16 x 16 x 768 in float16, thumbnails of 112 px, masks of 224 px with 21 classes.
Method:  as feed.py: jobs take turns in alternating order, a ratio is the median over the pairs, the feed streams with
         as many threads as the direct reader, which reads the same bytes. An epoch reads features, thumbnails and
         masks, as a training of `featup` does. A step is prepare, forward, cross-entropy with the masks, backward and
         AdamW; of `deap` and of `dense-linear`, whose step is the shorter one: there the reading weighs more.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import alternate, print_machine, ratio_text
from feed import FEED_GOAL, STEP_GOAL, DirectReader, Shape, look_at, make_cache, print_rates
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.dense import image_feature
from loffta.dataset.features import Feature
from loffta.feed.batches import WARM_THREADS, Feed
from loffta.heads import build_dense_head, find_head
from loffta.heads.dense import DenseBase, DenseRecipe
from loffta.machine import process
from loffta.shapes import TargetBatch
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, ImageStatus
from loffta.store.targets import TargetInfo, geometry_name, training_layout
from loffta.store.writer import Stored, UnitWriter
from loffta.targets import Readout
from loffta.tasks.dense import DENSE_TASKS
from loffta.training.fit import step_threads

GRID = Shape("1 tap x 256 tokens x 768", 1, 16, ("grid",))
CLASSES, MASK_PX, THUMB_PX, OUTPUT_PX, BATCH, STEPS = 21, 224, 112, 112, 16, 3
HEADS = ("deap", "dense-linear")
STREAMED: dict[str, Any] = {"mode": "stream", "n_threads": WARM_THREADS}
Read = tuple[tuple[Tensor, ...], Tensor]  # features, masks


def print_ratios(n_images: int, n_pairs: int) -> None:
    """Makes the cache in a temporary folder, measures, prints and deletes it."""
    process.cap_threads()
    print_machine(("torch", "numpy", "crc32c"))
    with tempfile.TemporaryDirectory(prefix="loffta-bench-") as folder:
        grid, thumbs, masks = make_dense_cache(Path(folder) / "cache", GRID, n_images)
        what = f"{GRID.name}, thumbnails of {THUMB_PX} px, masks of {MASK_PX} px"
        print(f"\n{what}: {n_images} images, batches of {BATCH}", flush=True)
        measure_feed([grid, thumbs], masks, n_images, BATCH, n_pairs)
        for head in HEADS:
            measure_step(head, grid, masks, np.arange(min(n_images, STEPS * BATCH)), BATCH, n_pairs)


def make_dense_cache(root: Path, shape: Shape, n_images: int) -> tuple[Feature, Feature, Feature]:
    """Grids, thumbnails and masks of noise, by loffta's own writers, as a feed reads them."""
    (grid,) = make_cache(root, shape, n_images, thumb_px=THUMB_PX)
    cache, rng = Cache.open(root), np.random.default_rng(0)
    thumbs = cache.thumbs(create=True)
    _fill(cache, thumbs, lambda n: rng.integers(0, 256, (n, THUMB_PX, THUMB_PX, 3), np.uint8))
    info = TargetInfo("mask", tuple(f"class {i}" for i in range(CLASSES)))
    squash = {"resize": "squash"}
    layout = training_layout(info, squash, MASK_PX, n_images, cache.unit_images)
    paths = cache.paths.target(f"mask-{geometry_name(squash)}")
    paths.folder.mkdir(parents=True)
    paths.metadata.write_bytes(layout.to_json())
    _fill(cache, CachedArray(paths, layout), lambda n: rng.integers(0, CLASSES, (n, MASK_PX, MASK_PX), np.uint8))
    cache = Cache.open(root)
    arrays = (cache.thumbs(), cache.training_target("mask", grid.store))
    return grid, *(image_feature(array, grid.store) for array in arrays)


def _fill(cache: Cache, array: CachedArray, draw: Callable[[int], NDArray[np.uint8]]) -> None:
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        writer = UnitWriter(array.paths, array.layout, unit)
        values = draw(len(rows))
        stored = Stored(values, np.ones((len(rows), 0), bool), np.zeros((len(rows), 0), np.float32))
        writer.append(rows, stored, [cache.table.keys[row] for row in rows])
        writer.commit([ImageStatus(row, OK) for row in rows], {})


def measure_feed(features: list[Feature], masks: Feature, n_images: int, batch: int, n_pairs: int) -> None:
    """An epoch of batches, warm, against the reader alone."""
    rng, numbers = np.random.default_rng(1), itertools.count()
    rows = np.arange(n_images)
    with (
        Feed(features, rows, batch_size=batch, order="uniform", maps=masks, **STREAMED) as feed,
        ThreadPoolExecutor(WARM_THREADS) as pool,
    ):
        direct = DirectReader([*features, masks], batch, pool)
        jobs: dict[str, Callable[[], object]] = {
            "direct": lambda: [look_at(read) for read in direct.batches(rng.permutation(n_images))],
            "feed": lambda: [look_at((*fed.features, masks_of(fed.targets))) for fed in feed.epoch(next(numbers))],
        }
        alternate(jobs, 0)  # fills the page cache and checks every checksum
        found = [alternate(jobs, repeat) for repeat in range(n_pairs)]
    print_rates(found, n_images)
    print(f"  {ratio_text([(s['direct'], s['feed']) for s in found], 'of the direct reader', FEED_GOAL)}", flush=True)


def measure_step(name: str, grid: Feature, masks: Feature, rows: NDArray[np.int64], batch: int, n_pairs: int) -> None:
    """Steps on batches and masks from the feed, and on one batch over and over; on as many threads as `train` takes."""
    head, step = make_step(name, grid)
    # whole batches alone, and two epochs a turn: the feed reads into the second one, but not from turn to turn
    rows, numbers = rows[: len(rows) // batch * batch], itertools.count()
    with (
        Feed([grid], rows, batch_size=batch, maps=masks, **STREAMED) as feed,
        step_threads(head, batch),
    ):
        first = next(feed.in_order())
        resident = (tuple(part.clone() for part in first.features), masks_of(first.targets).clone())

        def from_feed() -> Iterator[Read]:
            number = next(numbers)
            for epoch, more in ((2 * number, True), (2 * number + 1, False)):
                for fed in feed.epoch(epoch, more=more):
                    yield fed.features, masks_of(fed.targets)

        def take_steps(batches: Iterable[Read]) -> None:
            for features, labels in batches:
                step(features, labels)

        jobs: dict[str, Callable[[], object]] = {
            "resident batch": lambda: take_steps(itertools.repeat(resident, 2 * len(feed))),
            "with the feed": lambda: take_steps(from_feed()),
        }
        alternate(jobs, 0)
        found = [alternate(jobs, repeat) for repeat in range(n_pairs)]
    print(f"  a step of {name}")
    print_rates(found, 2 * len(rows))
    pairs = [(s["resident batch"], s["with the feed"]) for s in found]
    print(f"  {ratio_text(pairs, 'of the rate of: resident batch', STEP_GOAL)}", flush=True)


def make_step(name: str, grid: Feature) -> tuple[DenseBase, Callable[[tuple[Tensor, ...], Tensor], float]]:
    """A head, and what lets it learn from features and masks of a batch; gives the loss before."""
    recipe = find_head(name).recipe.model_validate({"output_px": OUTPUT_PX})
    assert isinstance(recipe, DenseRecipe), "the heads are dense ones"
    head = build_dense_head(name, [grid.spec], Readout((CLASSES,)), recipe, 0).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    task, settings, rng = DENSE_TASKS["segmentation"], recipe.settings(), torch.Generator()

    def step(features: tuple[Tensor, ...], labels: Tensor) -> float:
        outputs = head(head.prepare(features), rng)
        loss = task.loss(outputs, TargetBatch(maps=labels), settings).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return head, step


def masks_of(targets: TargetBatch | None) -> Tensor:
    """[B, S, S] of a batch that was read with masks."""
    assert targets is not None, "the feed has maps"
    assert targets.maps is not None, "and no boxes"
    return targets.maps
