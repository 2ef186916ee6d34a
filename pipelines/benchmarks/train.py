"""Training from the cache against training with the backbone online, and what many heads in one pass save.

Run:     python pipelines/benchmarks/train.py [--images 256] [--pairs 7] [--backbone vit_base_patch16_224] [--dir DIR]
Small:   python pipelines/benchmarks/train.py --images 16 --pairs 2 --backbone test_vit --image-px 64 --batch 8
Needs:   the extra `test` (scikit-image's sample photographs); 4.4 MB of disk an image for ViT-B.
Expect:  the goals are 0.85 of the bound, 4x and 0.95; see docs/benchmarks.md for what was reached.
Method:  1. A cached epoch (feed, prepare, optimiser step) against the same epoch online (decoding, backbone, prepare,
         step), for ComBo on all taps. Bound: (forward pass + head step on a resident batch) / that head step, all three
         measured in the same run on as many batches; beside it the bound by multiply-adds alone. The online epoch
         decodes ahead in threads, as a user's would.
         2. Heads in one pass: an epoch for several linear probes at once against as many epochs for one each, stream
         mode, the files' pages dropped from the page cache before each epoch (posix_fadvise).
         3. A training step with the feed against the same step on a resident batch, for ComBo.
         Jobs take turns in alternating order; ratios are medians over the pairs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import alternate, median_ratio, print_machine, ratio_text
from extract import make_photographs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loffta.backbones.timm_backbone import TimmBackbone, load_timm
from loffta.config import BackboneConfig, ExtractConfig
from loffta.dataset.features import Feature, choose_features
from loffta.extraction.extract import extract
from loffta.feed.batches import Feed
from loffta.feed.modes import ModeChoice
from loffta.heads import build_head, find_head
from loffta.images.sources import open_source
from loffta.machine import process
from loffta.machine.process import StopFlag
from loffta.online.stream import FreshStream
from loffta.runs.origins import Origins
from loffta.store.cache import Cache
from loffta.tasks import TASKS
from loffta.training.optim import parameter_groups

N_CLASSES, GOAL_ONLINE, GOAL_HEADS, GOAL_FEED = 100, 0.85, 4.0, 0.95


@dataclass
class Learner:
    """A head and its optimiser; `step` is one of `loffta train`."""

    head: Any
    optimizer: torch.optim.Optimizer
    labels: Tensor  # of every row

    def step(self, features: Sequence[Tensor], rows: Tensor) -> None:
        """Prepare, forward, backward, update."""
        self.learn(self.head.prepare(features), rows)

    def learn(self, prepared: Any, rows: Tensor) -> None:
        """The part behind `prepare`, which heads share."""
        loss = TASKS["classification"].loss(self.head(prepared), self.labels[rows]).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


@dataclass
class Bench:
    """What the measurements share."""

    cache: Cache
    backbone: TimmBackbone
    source: str
    device: torch.device
    batch: int
    pairs: int

    @property
    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """All images."""
        return np.arange(len(self.cache.table))

    def features(self, head: str) -> list[Feature]:
        """What the head is fed of all taps, or of its own."""
        entry = find_head(head)
        kinds = entry.recipe().kinds()
        return choose_features(self.cache, (), kinds, default_taps=entry.head.default_taps)

    def learner(self, head: str, features: Sequence[Feature], seed: int = 0) -> Learner:
        """A new head with its paper's recipe."""
        specs = [feature.spec for feature in features]
        recipe = find_head(head).recipe().resolve(specs)
        built = build_head(head, specs, N_CLASSES, recipe, seed).to(self.device).train()
        optimizer = torch.optim.AdamW(parameter_groups(built, recipe.weight_decay), lr=recipe.lr, fused=True)
        labels = torch.arange(len(self.cache.table), device=self.device) % N_CLASSES
        return Learner(built, optimizer, labels)

    def repeat(self, title: str, jobs: dict[str, Callable[[], None]], **hooks: Any) -> list[dict[str, float]]:
        """Seconds of each job in each pair, after one round to warm up."""
        print(f"\n{title}", flush=True)
        alternate(jobs, 0, **hooks)
        found = []
        for repeat in range(self.pairs):
            found.append(alternate(jobs, repeat, **hooks))
            print(f"  pair {repeat + 1}: {', '.join(f'{k} {v:.3f} s' for k, v in found[-1].items())}", flush=True)
        return found


def main() -> None:
    """Makes photographs and a cache, measures, prints and deletes."""
    parser = argparse.ArgumentParser(description="training benchmark: the cache against the backbone online")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--heads", type=int, default=8, help="linear probes in one pass")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    options = parser.parse_args()
    process.cap_threads()
    device = process.resolve_device(options.device)
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-", dir=options.dir))
    try:
        print_machine(("torch", "timm", "numpy"))
        print(f"{options.backbone} at {options.image_px} px, {options.images} images, batches of {options.batch}")
        make_photographs(folder / "photographs", options.images)
        backbone = load_timm(options.backbone, weights="random:0", image_px=options.image_px, device=device)
        cache = make_cache(folder, backbone, options.backbone, options.image_px, str(device))
        bench = Bench(cache, backbone, f"folder:{folder / 'photographs'}", device, options.batch, options.pairs)
        measure_online(bench)
        measure_heads(bench, options.heads)
        measure_feed(bench)
    finally:
        shutil.rmtree(folder)


def make_cache(folder: Path, backbone: TimmBackbone, name: str, image_px: int, device: str) -> Cache:
    """All taps as grid, float16."""
    config = ExtractConfig(
        source=f"folder:{folder / 'photographs'}",
        cache=folder / "cache",
        backbones=(BackboneConfig(name=name, weights="random:0", taps="all", image_px=image_px),),
        kinds=("grid",),
        batch_size=8,
        device=device,
    )
    extract(config, open_source(config.source), lambda _: backbone, StopFlag())
    return Cache.open(config.cache)


def measure_online(bench: Bench, head: str = "combo") -> dict[str, float]:
    """The cached epoch, the online epoch, and the parts that bound their ratio: speed-up, bound, and share of it."""
    features = bench.features(head)
    learner = bench.learner(head, features)
    origins = Origins.of(features, bench.cache.table.classes)
    source = open_source(bench.source)
    feed = Feed(features, bench.rows, batch_size=bench.batch, device=bench.device)
    fresh = FreshStream(
        origins.features,
        source,
        bench.cache.table,
        bench.rows.tolist(),
        load=lambda _: bench.backbone,
        device=bench.device,
        batch_size=bench.batch,
    )
    resident = [tensor.clone() for tensor in next(feed.in_order()).features]
    resident_rows = torch.arange(len(resident[0]), device=bench.device)
    side = bench.backbone.geometry.image_px
    ready = torch.zeros(len(resident_rows), 3, side, side, dtype=torch.uint8, device=bench.device)
    taps = [tap for feature in features for tap in feature.spec.taps]

    def cached() -> None:
        for batch in feed.epoch(0):
            learner.step(batch.features, batch.rows)
        wait(bench.device)

    def online() -> None:
        for batch in fresh:
            learner.step(batch.features, torch.tensor(batch.rows, device=bench.device))
        wait(bench.device)

    def forward() -> None:
        for _ in range(len(feed)):
            bench.backbone(ready, taps)
        wait(bench.device)

    def steps() -> None:
        for _ in range(len(feed)):
            learner.step(resident, resident_rows)
        wait(bench.device)

    jobs: dict[str, Callable[[], None]] = {
        "cached epoch": cached, "online epoch": online, "forward alone": forward, "head alone": steps,
    }  # fmt: skip
    with feed:
        found = bench.repeat(f"{head}, {feed.describe()}", jobs)
    speedup = [(s["online epoch"], s["cached epoch"]) for s in found]
    bound = [(s["forward alone"] + s["head alone"], s["head alone"]) for s in found]
    print(f"  {ratio_text(speedup, 'times faster than online')}")
    print(f"  {ratio_text(bound, 'times at most, by the parts measured')}")
    of_bound = [(a / b, c / d) for (a, b), (c, d) in zip(speedup, bound, strict=True)]
    print(f"  {ratio_text(of_bound, 'of the bound', GOAL_ONLINE)}")
    macs = count_macs(bench, learner, resident)
    print(
        f"  {macs:6.2f} times at most, by multiply-adds (head forward and backward counted as three forwards)",
        flush=True,
    )
    return {"speed-up": median_ratio(speedup), "bound": median_ratio(bound), "of the bound": median_ratio(of_bound)}


def count_macs(bench: Bench, learner: Learner, resident: Sequence[Tensor]) -> float:
    """(backbone + head step) / head step, in multiply-adds of one image."""
    side = bench.backbone.geometry.image_px
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=bench.device)
    network, head = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad(), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        with network:
            bench.backbone(pixels, [spec.tap for spec in bench.backbone.specs][-1:])
        prepared = learner.head.prepare([tensor[:1] for tensor in resident])
        with head:
            learner.head(prepared)
    step = 3 * head.get_total_flops()
    return (network.get_total_flops() + step) / step


def measure_heads(bench: Bench, n_heads: int) -> float:
    """Linear probes on the means of all grids: several in one disk-bound pass against a pass each."""
    features = choose_features(bench.cache, (), ("mean",), default_taps="all")
    learners = [bench.learner("linear", features, seed) for seed in range(n_heads)]

    def train(members: Sequence[Learner]) -> None:
        drop_pages(features)
        with Feed(features, bench.rows, batch_size=bench.batch, device=bench.device, mode="stream") as feed:
            for batch in feed.epoch(0):
                prepared = members[0].head.prepare(batch.features)
                for member in members:
                    member.learn(prepared, batch.rows)
        wait(bench.device)

    def apart() -> None:
        for learner in learners:
            train([learner])

    found = bench.repeat(f"{n_heads} linear probes", {"one pass": lambda: train(learners), "a pass each": apart})
    pairs = [(s["a pass each"], s["one pass"]) for s in found]
    print(f"  {ratio_text(pairs, f'times faster in one pass for {n_heads} heads', GOAL_HEADS)}", flush=True)
    return median_ratio(pairs)


def measure_feed(bench: Bench, mode: ModeChoice = "stream") -> float:
    """ComBo steps on what the feed brings, and on one batch that is there; the second's time over the first's."""
    features = bench.features("combo")
    learner = bench.learner("combo", features)
    with Feed(features, bench.rows, batch_size=bench.batch, device=bench.device, mode=mode) as feed:
        resident = [tensor.clone() for tensor in next(feed.in_order()).features]
        rows = torch.arange(len(resident[0]), device=bench.device)

        def fed() -> None:
            for batch in feed.epoch(0):
                learner.step(batch.features, batch.rows)
            wait(bench.device)

        def alone() -> None:
            for _ in range(len(feed)):
                learner.step(resident, rows)
            wait(bench.device)

        found = bench.repeat(f"combo, {mode} mode, warm", {"feed": fed, "resident": alone})
    pairs = [(s["resident"], s["feed"]) for s in found]
    print(f"  {ratio_text(pairs, 'of a resident batch', GOAL_FEED)}", flush=True)
    return median_ratio(pairs)


def drop_pages(features: Sequence[Feature]) -> None:
    """The next read of the shards comes from the disk, as far as the kernel heeds the advice."""
    for folder in {feature.array.paths.folder for feature in features}:
        for path in folder.glob("c.*"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
