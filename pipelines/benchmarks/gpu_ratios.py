"""The ratios of gpu_check.py: what the device gains, each beside what it cannot pass or the rival it replaces.

In: a Setup.   Out: (what, median ratio over the pairs, None) per comparison; None for what the device has not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import alternate, median_ratio
from extract_null import NullBackbone, Parts
from gpu_values import Comparisons, Setup, all_features
from train import Bench, measure_feed, measure_heads, measure_online, wait

from loffta.feed.batches import Feed
from loffta.feed.modes import ModeChoice
from loffta.store.cache import Cache

N_HEADS = 8


def repeat(setup: Setup, jobs: dict[str, Callable[[], Any]], **hooks: Any) -> list[dict[str, float]]:
    """Seconds of each job in each pair, after a round to warm up."""
    alternate(jobs, 0, **hooks)
    return [alternate(jobs, pair, **hooks) for pair in range(setup.pairs)]


def time_extraction(setup: Setup) -> Comparisons:
    """From JPEG files to committed shards, beside the forward pass alone on pixels that lie on the device."""
    network, side = setup.network(str(setup.device)), setup.image_px
    ready = torch.randint(0, 256, (setup.batch, 3, side, side), dtype=torch.uint8, device=setup.device)
    last = [spec.tap for spec in network.specs if spec.tap.count(".") == 1][-1:]
    setup.source("many")

    for precision, kinds in (("fp32", ("grid", "prefix")), ("bf16", ("grid", "prefix")), ("bf16", ("mean", "prefix"))):

        def context(precision: str = precision) -> AbstractContextManager[Any]:
            return nullcontext() if precision == "fp32" else torch.autocast(setup.device.type, torch.bfloat16)

        def forward(context: Callable[[], AbstractContextManager[Any]] = context) -> None:
            with context():
                for _ in range(setup.n_images // setup.batch):
                    network(ready, last)
            wait(setup.device)

        def whole(precision: str = precision, kinds: tuple[str, ...] = kinds) -> None:
            setup.extract("timed", setup.device, "many", precision=precision, kinds=kinds)

        def delete(_: str) -> None:
            shutil.rmtree(setup.folder / "timed", ignore_errors=True)

        found = repeat(setup, {"forward": forward, "whole": whole}, after=delete)
        what = f"of bare forward, {precision}, {'+'.join(kinds)}"
        yield what, median_ratio([(s["forward"], s["whole"]) for s in found]), None
    yield "null network, of the bound by parts", time_null(setup), None


def time_null(setup: Setup) -> float:
    """A network that costs nothing, beside what the host's cores allow: the device casts, where there is one."""
    images = Path(setup.source("many").removeprefix("folder:"))
    parts = Parts(images, setup.n_images, NullBackbone(setup.batch, setup.device))
    raw, cache = setup.folder / "raw", setup.folder / "timed"

    def delete(_: str) -> None:
        for folder in (raw, cache):
            shutil.rmtree(folder, ignore_errors=True)

    jobs = {"decode": parts.decode, "check": parts.check, "write": lambda: parts.write(raw)}
    jobs |= {"cast": parts.cast} if setup.device.type == "cpu" else {}
    found = repeat(setup, jobs | {"whole": lambda: parts.whole(cache)}, after=delete)
    return median_ratio([(sum(s[part] for part in jobs), s["whole"]) for s in found])


def time_feed(setup: Setup) -> Comparisons:
    """An epoch of all grids to a consumer that does nothing, beside copies of as many bytes."""
    if setup.device.type != "cuda":
        yield "device mode, of a device memory copy", None, None
        yield "host and stream mode, of pinned copies", None, None
        return
    cache = setup.many
    rows = np.arange(len(cache.table))
    features = all_features(cache, ("grid",))
    limits = {"device": "a device memory copy", "host": "pinned copies (PCIe)", "stream": "pinned copies (PCIe)"}
    for mode, limit in limits.items():
        with _open(setup, cache, rows, mode) as feed:
            resident = [tensor.clone() for tensor in next(feed.in_order()).features]
            pinned = [tensor.cpu().pin_memory() for tensor in resident]

            def copies(
                parts: list[torch.Tensor] = resident if mode == "device" else pinned, n_batches: int = len(feed)
            ) -> None:
                for _ in range(n_batches):
                    for part in parts:
                        part.clone() if part.is_cuda else part.to(setup.device, non_blocking=True)
                wait(setup.device)

            def epoch(feed: Feed = feed) -> None:
                for batch in feed.epoch(0):
                    assert len(batch.features) == len(features)
                wait(setup.device)

            found = repeat(setup, {"copies": copies, "feed": epoch})
        yield f"{mode} mode, of {limit}", median_ratio([(s["copies"], s["feed"]) for s in found]), None


def _open(setup: Setup, cache: Cache, rows: np.ndarray[Any, np.dtype[np.int64]], mode: ModeChoice) -> Feed:
    return Feed(all_features(cache, ("grid",)), rows, batch_size=setup.batch, device=setup.device, mode=mode)


def time_training(setup: Setup) -> Comparisons:
    """Steps and epochs: the feed beside a batch that is there, the cache beside the backbone, one pass beside eight."""
    source, network = setup.source("many"), setup.network(str(setup.device))
    bench = Bench(setup.many, network, source, setup.device, setup.batch, setup.pairs)
    for mode in ("device", "stream") if setup.device.type == "cuda" else ("host", "stream"):
        yield f"ComBo step, {mode} mode, of resident", measure_feed(bench, mode), None
    for head in ("combo", "fusion", "loff"):
        found = measure_online(bench, head)
        yield f"{head}: online epoch / cached epoch", found["speed-up"], None
        yield f"{head}: of the bound by parts", found["of the bound"], None
    yield f"{N_HEADS} probes: {N_HEADS} passes / one pass", measure_heads(bench, N_HEADS), None


RATIOS = {"extraction": time_extraction, "feed": time_feed, "training": time_training}
