"""Checks every line that only a GPU takes against the same line on the CPU, then prints what a GPU gains. One table.

Run:     python pipelines/gpu_check.py [--out gpu-check.json] [--dir /dev/shm] [--device cuda]
Small:   python pipelines/gpu_check.py --quick --device cpu     (what the tests run; ratios of it mean nothing)
Needs:   loffta, 4 GB in --dir, no network: the images are made here, the ViT-B/16 has random weights.
Takes:   under 6 minutes on one GPU with 16 CPU cores. (Not run on a GPU yet.)
Method:  Values: features, batches, steps, dense ones, too, augmentation and predictions on the device beside those of
         the CPU, as the largest difference with its bound. Ratios: pipelines/benchmarks/train.py on the device, and
         extraction and the feed beside what they cannot pass: the bare forward pass, a device memory copy, a copy from
         pinned memory.
Exit:    0 where every value is within its bound, else 1. A ratio never fails: it is for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from gpu_dense import DENSE
from gpu_ratios import RATIOS
from gpu_values import VALUES, Comparisons, Setup

from loffta.machine import process


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    value: float | None  # None: it could not be taken here
    bound: float | None  # the largest value that is right; None: a ratio, which is shown as it is
    note: str = ""

    @property
    def verdict(self) -> str:
        """ok, WRONG, or a dash where nothing is judged."""
        if self.value is None:
            return "not here" if not self.note.startswith("failed") else "WRONG"
        return "" if self.bound is None else "ok" if self.value <= self.bound else "WRONG"


def main(words: list[str] | None = None) -> int:
    """Makes images and caches in a temporary folder, checks, prints, deletes."""
    parser = argparse.ArgumentParser(description="what only a GPU runs, against the CPU")
    parser.add_argument("--device", default="auto", help="auto takes CUDA")
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--images", type=int, default=512, help="for the ratios; the values take an eighth of them")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3, help="interleaved repeats of every ratio")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few images")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file with the same rows")
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    options = parser.parse_args(words)
    if options.quick:
        options.backbone, options.image_px, options.images, options.batch, options.pairs = "test_vit", 32, 16, 8, 1
    start = time.monotonic()
    process.cap_threads()
    device = process.resolve_device(options.device)
    folder = Path(tempfile.mkdtemp(prefix="loffta-gpu-", dir=options.dir))
    try:
        setup = Setup(folder, device, options.backbone, options.image_px, options.images, options.batch, options.pairs)
        rows = [*_run(VALUES | DENSE, setup), *_run(RATIOS, setup)]
    finally:
        shutil.rmtree(folder)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} (no GPU: ratios mean nothing)"
    found = {"device": card, "versions": process.versions(), "seconds": time.monotonic() - start}
    head = textwrap.fill(f"{card}; {process.describe(device)}", 80)
    print(f"\n{head}\n\n{_table(rows)}\n\n{found['seconds']:.0f} s")
    if options.out:
        options.out.write_text(
            json.dumps(found | {"rows": [asdict(r) | {"verdict": r.verdict} for r in rows]}, indent=2)
        )
    return int(any(row.verdict == "WRONG" for row in rows))


def _run(checks: dict[str, Callable[[Setup], Comparisons]], setup: Setup) -> list[Row]:
    """Rows of each check; one that breaks is a row, and the others go on."""
    rows = []
    for part, check in checks.items():
        print(f"== {part}", file=sys.stderr, flush=True)
        try:
            rows += [Row(part, what, value, bound) for what, value, bound in check(setup)]
        except Exception as error:  # whatever it is, it belongs into the table
            traceback.print_exception(error)
            rows.append(Row(part, "the check itself", None, None, f"failed: {type(error).__name__}: {error}"[:200]))
    return rows


def _table(rows: list[Row]) -> str:
    """At most 80 columns."""
    lines = [f"{'part':12} {'what':38} {'value':>10} {'bound':>8} verdict"]
    for row in rows:
        value, bound = ("" if n is None else f"{n:.3g}" for n in (row.value, row.bound))
        lines.append(f"{row.part:12} {row.what:38} {value:>10} {bound:>8} {row.verdict}")
        lines += textwrap.wrap(row.note, 80, initial_indent=" " * 13, subsequent_indent=" " * 13)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
