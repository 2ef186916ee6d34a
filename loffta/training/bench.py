"""Measures where the time of a training step goes, part by part, and says what to change.

In: a cache, and what would be trained on it.   Out: a mapping for `loffta bench`. Nothing is written; what is read here
is dropped from the page cache first, so that the disk shows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loffta import augment
from loffta.config import parse
from loffta.dataset.features import choose_features, usable_rows
from loffta.errors import UsageError
from loffta.feed.batches import Feed
from loffta.feed.modes import (
    ASKED_SHARE,
    Mode,
    ModeChoice,
    bytes_per_image,
    choose_placements,
    describe_placements,
    is_cold,
)
from loffta.feed.order import Order, choose_order
from loffta.feed.sources import group_by_array, read_bytes
from loffta.heads import build_head, find_head
from loffta.machine import process
from loffta.store.cache import Cache
from loffta.store.zarr_reader import open_array
from loffta.training.bench_parts import Job, augmented, bytes_moved, evict, time_parts, train_step, wait_for
from loffta.training.bench_staging import bench_staging
from loffta.training.fit import step_threads
from loffta.training.optim import fit_to_images, make_optimizer

# what threads do while the head computes, or once; the other parts take turns with it
READING = ("disk", "crc32c", "hold", "page cache", "memory")
ONCE = ("crc32c", "hold")  # in the first epoch alone; "disk", too, unless the page cache cannot keep what is streamed
WAITING = 0.1  # share of a step from which on the feed is what to look at


def bench(
    cache_root: Path,
    *,
    head: str,
    features: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    augmentation: str | Mapping[str, Any] = "none",
    batch_size: int | None = None,
    seconds: float = 10.0,
    device: str = "auto",
    feed: ModeChoice = "auto",
    stage_dir: str | None = None,
) -> dict[str, Any]:
    """Times the parts of a training step one after the other, then the whole step with its feed.

    Args:
        features: STORE[:TAPS], as `train` takes them.
        settings: what differs from the head's recipe.
        augmentation: as a TrainConfig's `augment`.
        batch_size: None: the recipe's.
        seconds: for the parts and for the step, each half; half as much again for `stage_dir`.
        stage_dir: a folder of this node, whose worth for copies is measured.
    Raises:
        UsageError: unknown head, key, store or tap; or a mode without room.
        LofftaError: no cache, or no features in it.
    """
    process.cap_threads()
    if seconds <= 0:
        raise UsageError(f"{seconds} seconds are no time", where="--seconds", remedy="give at least 1")
    wanted = augment.resolve(augmentation)
    job = _prepare(Cache.open(cache_root), head, features, settings or {}, wanted, batch_size, device)
    placements = choose_placements(job.features, len(job.rows), job.device, feed)
    job = replace(job, placements=placements)
    streamed = [f for f, placement in zip(job.features, placements, strict=True) if placement.mode == "stream"]
    cold = is_cold(read_bytes(streamed) * len(job.rows))
    mode: Mode = "stream" if streamed else placements[0].mode
    with step_threads(job.head, job.batch_size), process.explain_memory(job.device, "loffta bench"):
        parts = time_parts(job, seconds / 2, cold=cold)
        step = _time_step(job, mode, choose_order(streamed, cold), cold, parts, seconds / 2)
        staging: dict[str, Any] = {}
        if stage_dir is not None:
            computes_s = sum(s for name, s in parts.items() if name not in READING) * len(job.rows) / job.batch_size
            how: dict[str, Any] = {"computes_s": computes_s, "streams": bool(streamed), "cold": cold}
            staging = {"staging": bench_staging(job, stage_dir, seconds / 2, **how)}
    needed = bytes_per_image(job.features) * len(job.rows)
    return {
        "head": head,
        "device": str(job.device),
        "batch_size": job.batch_size,
        "images": len(job.rows),
        "bytes_per_image": read_bytes(job.features),
        "features": [f"{f.store.name}:{','.join(f.spec.taps)}" for f in job.features],
        "feed": describe_placements(job.features, placements, len(job.rows)),
        "parts": _rows_of_table(parts, job, cold),
        "step": step,
        "advice": advise(
            parts,
            step["waited"],
            streams=bool(streamed),
            cold=cold,
            fits_host=needed <= ASKED_SHARE * process.free_memory_bytes(),
            dtypes={f.array.layout.dtype.name for f in job.features},
            pools=any(f.is_pooled for f in streamed),
        ),
        **staging,
    }


def advise(
    parts: Mapping[str, float],
    waited: float,
    *,
    streams: bool,
    cold: bool,
    fits_host: bool,
    dtypes: Collection[str],
    pools: bool = False,
) -> str:
    """One sentence: what to change, or that there is nothing to gain.

    Args:
        parts: seconds a batch.
        waited: share of a step that the head waits for data.
        streams: some array is read for each batch; `cold`: from the disk, for the page cache cannot keep them.
        fits_host: all features fit the memory.
        dtypes: of the arrays; nothing is advised that they are already.
        pools: means are taken of each batch.
    """
    small = {"float32": ["extract with --dtype float16, which halves the bytes"], "int8": []}
    as_float16 = ["extract with --dtype int8, which halves the bytes"]
    fewer = [*small.get(max(dtypes, key=lambda name: np.dtype(name).itemsize), as_float16)]
    fewer.append("choose fewer taps with --features")
    if waited >= WAITING:
        what = f"the head waits for data {waited:.0%} of the time"
        if streams and fits_host:
            return f"{what}: train with --feed host, the features fit the memory"
        if cold:
            return f"{what}, and the disk is read in every epoch: {', or '.join(fewer)}, or ask for more memory"
        source = "the page cache" if streams else "memory"
        return f"{what}, though it comes from {source}: {', or '.join(fewer)}, or ask for more CPUs"
    most = max((name for name in parts if name not in READING), key=lambda name: parts[name])
    if most == "copy":
        near = ["train with --feed device if the features fit there", *fewer]
        return f"copies to the device take most of a step: {', or '.join(near)}"
    if most == "reduce":
        ways = ["train with --feed host, which pools once"] if pools and fits_host else []
        ways += ["extract with --kinds mean"] if pools else []
        ways += ["extract with --dtype float16"] if "int8" in dtypes else []
        return f"pooling and dequantising take most of a step: {', or '.join(ways or fewer[-1:])}"
    if most == "augment":
        return "augmentation takes most of a step: leave a part of it out, or train fewer heads side by side"
    if most == "prepare":
        return "the head's preparation takes most of a step, and no feed can help: choose fewer taps or a smaller grid"
    return "the head itself takes most of a step: there is nothing to gain in the feed"


def _prepare(
    cache: Cache,
    head: str,
    choices: Sequence[str],
    settings: Mapping[str, Any],
    augmentation: augment.AugmentConfig,
    batch_size: int | None,
    device_name: str,
) -> Job:
    entry = find_head(head)
    recipe = parse(entry.recipe, settings, where=f"recipe of head '{head}'")
    features = choose_features(cache, choices, recipe.kinds(), default_taps=entry.head.default_taps)
    specs = [feature.spec for feature in features]
    recipe = recipe.resolve(specs)
    rows = usable_rows(cache, features, "+".join(cache.table.split_sizes()), partial=True)
    device = process.resolve_device(device_name)
    built = build_head(head, specs, max(2, len(cache.table.classes)), recipe, 0).to(device).train()
    batch_size = min(batch_size or fit_to_images(recipe, len(rows)).batch_size, len(rows))
    optimizer = make_optimizer(built, recipe, device)
    wanted = None if augmentation == augment.AugmentConfig() else augmentation
    return Job(features, rows, built, recipe, optimizer, device, batch_size, wanted)


def _time_step(
    job: Job, mode: Mode, order: Order, cold: bool, parts: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """Steps with the feed: images a second, and the share of the time in which the head waited.

    A sample of the images, as many as the time allows, stands for all; where the page cache cannot keep the features,
    it comes from the disk.
    """
    per_batch = parts["disk"] + sum(parts[name] for name in parts if name not in READING)
    n_batches = max(2, min(int(seconds / per_batch), -(-len(job.rows) // job.batch_size)))
    n_sample = n_batches * job.batch_size
    # a windowed order reads neighbours, which a random sample has not
    rows = (job.rows if order == "windowed" else np.random.default_rng(1).permutation(job.rows))[:n_sample]
    if cold:
        for members in group_by_array(job.features):
            evict(open_array(job.features[members[0]].array.paths), rows, None)
    n_images, epoch, start = 0, 0, time.perf_counter()
    with Feed(job.features, rows, batch_size=job.batch_size, device=job.device, mode=mode, order=order) as feed:
        start = time.perf_counter()
        while True:
            for batch in feed.epoch(epoch, more=not cold):
                train_step(job, job.head.prepare(augmented(job, batch.features)))
                n_images += len(batch.rows)
            wait_for(job.device)
            epoch += 1
            taken = time.perf_counter() - start
            if cold or taken > seconds:
                return {
                    "images_per_s": n_images / taken,
                    "waited": feed.waited_s / taken,
                    "images": len(rows),
                    "order": order,
                }


def _rows_of_table(parts: Mapping[str, float], job: Job, cold: bool) -> list[dict[str, Any]]:
    """Per part: milliseconds and rates of a batch, and its share of all that a batch of the first epoch and of a later
    one takes, were nothing done at the same time.
    """
    absent = {"first": {"page cache"}, "later": {*ONCE, *(() if cold else ("disk",))}}
    sums = {epoch: sum(s for name, s in parts.items() if name not in absent[epoch]) for epoch in absent}
    moved = bytes_moved(job)
    return [
        {
            "part": name,
            "ms": 1000 * taken_s,
            "images_per_s": job.batch_size / taken_s,
            "gb_per_s": moved[name] / taken_s / 1e9 if name in moved else None,
            "share_first_epoch": None if name in absent["first"] else taken_s / sums["first"],
            "share_later": None if name in absent["later"] else taken_s / sums["later"],
        }
        for name, taken_s in parts.items()
    ]
