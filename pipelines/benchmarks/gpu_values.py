"""The values of gpu_check.py: each check compares what the device gives with what the CPU gives.

In: a Setup.   Out: (what, largest difference, its bound) per comparison; None for what this device has not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from loffta import augment
from loffta.backbones.timm_backbone import TimmBackbone, load_timm
from loffta.config import BackboneConfig, ExtractConfig, TrainConfig
from loffta.dataset.features import Feature, choose_features
from loffta.errors import LofftaError
from loffta.evaluation.evaluate import evaluate
from loffta.extraction.extract import extract
from loffta.feed.batches import Feed
from loffta.feed.modes import ModeChoice
from loffta.heads import IMAGE_HEADS
from loffta.images.sources import open_source
from loffta.machine import process
from loffta.machine.process import StopFlag
from loffta.online.evaluate import evaluate_online
from loffta.runs.run import RunPaths, read_predictions
from loffta.store.cache import Cache
from loffta.training.train import train

Comparisons = Iterator[tuple[str, float | None, float | None]]
CLASSES = 4
# what is random in a head's training is drawn on its device, and no two kinds of device draw alike
PLAIN = {"epochs": 2, "batch_size": 16, "min_steps": None, "precision": "fp32"}
ALF = {"jitter_probability": 0.0, "min_batches": None}  # its rule has batches of two here, which amplify last bits
UNSHAKEN = {"attentive": ALF, "fusion": ALF}


@dataclass(frozen=True)
class Setup:
    """What the checks share: a set of few images, which the CPU computes, too, and one of many; caches of them."""

    folder: Path
    device: torch.device
    backbone: str
    image_px: int
    n_images: int
    batch: int
    pairs: int

    @property
    def n_few(self) -> int:
        """Images that the CPU computes, too."""
        return max(16, self.n_images // 8)

    def source(self, images: str = "few") -> str:
        """Its folder; made when first asked for."""
        folder = self.folder / f"images-{images}"
        if not folder.exists():
            make_images(folder, self.n_few if images == "few" else self.n_images, self.image_px)
        return f"folder:{folder}"

    @cache  # noqa: B019
    def network(self, device: str) -> TimmBackbone:
        """The backbone on one device."""
        return load_timm(self.backbone, weights="random:0", image_px=self.image_px, device=torch.device(device))

    def extract(self, name: str, device: torch.device, images: str = "few", **options: Any) -> Cache:
        """A cache of its own for each name; the same name goes on with it."""
        wanted = BackboneConfig(name=self.backbone, weights="random:0", taps="all,alf", image_px=self.image_px)
        config = ExtractConfig(
            source=self.source(images),
            cache=self.folder / name,
            backbones=(wanted,),
            device=str(device),
            **{"batch_size": self.batch} | options,
        )
        extract(config, open_source(config.source), lambda _: self.network(str(device)), StopFlag())
        return Cache.open(config.cache)

    @cached_property
    def on_cpu(self) -> Cache:
        """The twin: few images on the CPU, float32 kept as float32."""
        return self.extract("cpu-float32", torch.device("cpu"), dtype="float32")

    @cached_property
    def many(self) -> Cache:
        """Many images on the device, kept as float16."""
        return self.extract("many", self.device, "many")


def make_images(folder: Path, n_images: int, side: int) -> None:
    """JPEG files of four classes in two splits: clouds of noise, brighter in one channel than in the others."""
    rng = np.random.default_rng(0)
    for i in range(n_images):
        label, split = i % CLASSES, "test" if i % 5 == 4 else "train"
        coarse = rng.uniform(0, 160, (12, 16, 3))
        coarse[..., :3] += 60 * (np.arange(3) == label)
        cloud = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((side * 2, side * 3 // 2), Image.BICUBIC)
        path = folder / split / f"class-{label}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cloud.save(path, quality=92)


def all_features(cache: Cache, kinds: Sequence[Any] = ("grid", "prefix")) -> list[Feature]:
    """Of all taps."""
    return choose_features(cache, (), kinds, default_taps="all")


def read_all(cache: Cache) -> list[Tensor]:
    """All images' features on the CPU, one [n, L, *shape] each, as float32."""
    n_images = len(cache.table)
    with Feed(all_features(cache), np.arange(n_images), batch_size=n_images, mode="stream") as feed:
        return [tensor.float().clone() for tensor in next(feed.in_order()).features]


def rms_apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative RMS difference of one tap of one image."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        off = (one - other).flatten(2).square().mean(2).sqrt()
        worst = max(worst, float((off / other.flatten(2).square().mean(2).sqrt().clamp_min(1e-12)).max()))
    return worst


def check_extraction(setup: Setup) -> Comparisons:
    """Bounds: those of `loffta verify --recompute`, which follow from rounding."""
    expected = read_all(setup.on_cpu)
    for precision, dtype, bound in (
        ("fp32", "float32", 1e-3), ("fp32", "float16", 2e-3), ("fp32", "int8", 2e-2), ("bf16", "float16", 2e-2),
    ):  # fmt: skip
        name = f"device-{precision}-{dtype}"
        made = setup.extract(name, setup.device, precision=precision, dtype=dtype)
        yield f"{precision}, kept as {dtype}", rms_apart(read_all(made), expected), bound


def check_feed(setup: Setup) -> Comparisons:
    """Every batch of two epochs, kept while the device is busy, bit for bit; means to the last bits of a sum."""
    for dtype in ("float16", "int8"):
        made = setup.extract(f"device-fp32-{dtype}", setup.device, dtype=dtype)
        for kinds, bound in ((("grid", "prefix"), 0.0), (("mean",), 1e-5)):
            expected = _epochs(setup, all_features(made, kinds), torch.device("cpu"), "host")
            for mode in ("device", "host", "stream"):
                what = f"{mode} mode, {'+'.join(kinds)}, {dtype}"
                if mode == "device" and setup.device.type != "cuda":
                    yield what, None, bound
                    continue
                found = _epochs(setup, all_features(made, kinds), setup.device, mode)
                pairs = [
                    (a, b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True)
                ]
                yield what, max(float((a.float() - b.float()).abs().max()) for a, b in pairs), bound


def _epochs(setup: Setup, features: list[Feature], device: torch.device, mode: ModeChoice) -> list[list[Tensor]]:
    """Batches of two epochs on the CPU; copied there only after others were read, so that a reused buffer shows."""
    kept: list[list[Tensor]] = []
    with Feed(features, np.arange(setup.n_few), batch_size=4, device=device, mode=mode, order="uniform") as feed:
        for epoch in range(2):
            for batch in feed.epoch(epoch, more=epoch == 0):
                if device.type == "cuda":
                    torch.cuda._sleep(20_000_000)  # about 10 ms of cycles: the next copies begin meanwhile
                kept.append([tensor.clone() for tensor in batch.features])
    return [[tensor.cpu() for tensor in batch] for batch in kept]


def check_augmentation(setup: Setup) -> Comparisons:
    """The same draws on both; noise is left out, for it is drawn on the device."""
    features = all_features(setup.on_cpu)
    specs, tokens = [f.spec for f in features], read_all(setup.on_cpu)
    for name in augment.PRESETS:
        settings = augment.resolve(name).model_copy(update={"noise_std": 0.0})
        drawn = augment.draw(settings, setup.n_few, torch.Generator().manual_seed(1), torch.device("cpu"))
        expected = augment.apply(tokens, specs, drawn)
        found = augment.apply([t.to(setup.device) for t in tokens], specs, drawn.to(setup.device))
        yield name, rms_apart([t.cpu() for t in found], expected), 1e-4


def check_training(setup: Setup) -> Comparisons:
    """The loss of two epochs, head by head; bounds: float32 sums in another order, and bfloat16's 8 bits."""
    for head in IMAGE_HEADS:
        expected = _losses(_train(setup, head, "fp32", twin=True))
        for precision, bound in (("fp32", 1e-2), ("bf16", 0.1)):
            found = _losses(_train(setup, head, precision))
            yield f"{head}, {precision}", float(np.max(np.abs(found / expected - 1))), bound


def _losses(run: Path) -> NDArray[Any]:
    lines = RunPaths(run).metrics(0).read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def _train(setup: Setup, head: str, precision: str, *, twin: bool = False) -> Path:
    """A run on the device, or its twin on the CPU; trained once."""
    recipe = PLAIN | UNSHAKEN.get(head, {}) | {"precision": precision}
    if head in ("combo", "loff"):
        recipe |= {"depth": 2}
    device = "cpu" if twin else str(setup.device)
    config = TrainConfig(cache=setup.on_cpu.paths.root, head=head, device=device, recipe=recipe)
    out = setup.folder / f"run-{head}-{'twin' if twin else 'device'}-{precision}"
    train(config, out, StopFlag())
    return out


def check_evaluation(setup: Setup) -> Comparisons:
    """Probabilities of one trained head, on the device and on the CPU, cached and online."""
    for precision, bound in (("fp32", 1e-3), ("bf16", 5e-2)):
        run = _train(setup, "combo", precision)
        found = []
        for device in ("cpu", str(setup.device)):
            evaluate(run, "test", device=device)
            found.append(_probabilities(run))
        yield f"cached, {precision}", float(np.abs(found[0] - found[1]).max()), bound
    run = _train(setup, "linear", "fp32")
    evaluate(run, "test", device="cpu")
    cached = read_predictions(RunPaths(run).predictions("test"))
    load = lambda _: setup.network(str(setup.device))  # noqa: E731
    evaluate_online([run], open_source(setup.source()), "test", load, device=setup.device)
    online = read_predictions(RunPaths(run).predictions("test"))
    of = {key: i for i, key in enumerate(online["key"])}
    places = [of[key] for key in cached["key"]]
    one, other = np.stack(cached["probabilities"]), np.stack(online["probabilities"])[places]
    yield "online beside cached, fp32", float(np.abs(one - other).max()), 1e-2


def _probabilities(run: Path) -> NDArray[Any]:
    return np.stack(read_predictions(RunPaths(run).predictions("test"))["probabilities"])


def check_memory(setup: Setup) -> Comparisons:
    """A real out-of-memory error: extraction halves its batch and ends with the same features; training explains it."""
    if setup.device.type != "cuda":
        yield "batch halved, features", None, 2e-3
        yield "training says what to do", None, 0.0
        return
    network, total = setup.network(str(setup.device)), torch.cuda.get_device_properties(setup.device).total_memory
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved(setup.device) + (1 << 30)
    torch.cuda.set_per_process_memory_fraction(room / total, setup.device)
    told = StringIO()
    try:
        with redirect_stderr(told):
            made = setup.extract("halved", setup.device, "many", batch_size=256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setup.device)
        torch.cuda.empty_cache()
    assert "memory ran out" in told.getvalue(), f"256 images of {network.name} fitted 1 GiB: nothing was halved"
    yield "batch halved, features", rms_apart(read_all(made), read_all(setup.many)), 2e-3
    try:
        with process.explain_memory(setup.device, "gpu_check"):
            torch.empty(1 << 50, dtype=torch.uint8, device=setup.device)
    except LofftaError as error:
        yield "training says what to do", float("smaller batch" not in error.remedy), 0.0


VALUES = {
    "extraction": check_extraction,
    "feed": check_feed,
    "augment": check_augmentation,
    "training": check_training,
    "evaluation": check_evaluation,
    "memory": check_memory,
}
