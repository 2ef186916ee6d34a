"""What grows faster than the images? Caches of several sizes, step by step; the slopes say it.

Run:     python pipelines/benchmarks/scale.py --growth [--finished 100000 1280000 ...] [--tables 10000000 100000000]
         [--dir DIR] [--quick]
Needs:   1 GB of disk for --finished 10000000; 5 GB of disk and 12 GB of memory for --tables 100000000.
Expect:  a line per step: CPU and wall seconds or bytes at every size, and how often it grows tenfold where the images
         do (1: as the images; 0: not at all). "grows faster" is printed behind a slope above 1.2. Steps are told as
         they end. On two busy cores 100,000 and 1.28 million took 7 minutes, 10 million without `verify` 5 minutes.
Store:   thumbnails and mean tokens of one layer of ViT-B, all units finished (`sparse_cache`); of --tables the table
         of images alone. Other arrays cost what the mean's do, once more each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import scale_steps
import sparse_cache

FINISHED, TABLES, QUICK = (100_000, 1_280_000, 10_000_000), (100_000_000,), (300, 3_000)
TOO_STEEP, SHORTEST_S = 1.2, 0.05  # a slope says nothing of shorter steps


def main(words: Sequence[str] | None = None) -> None:
    """Makes, measures and deletes one cache after the other, then prints the table."""
    parser = argparse.ArgumentParser(description="growth of every step with the number of images")
    parser.add_argument("--finished", type=int, nargs="*", default=FINISHED, help="sizes of finished caches")
    parser.add_argument("--tables", type=int, nargs="*", default=TABLES, help="sizes of caches of a table alone")
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    parser.add_argument("--quick", action="store_true", help="seconds: two small sizes, in this process")
    options = parser.parse_args(words)
    finished, tables = (QUICK, ()) if options.quick else (options.finished, options.tables)
    found: dict[int, dict[str, float]] = {}
    for n_images in sorted({*finished, *tables}):
        folder = Path(tempfile.mkdtemp(prefix="loffta-growth-", dir=options.dir))
        try:
            found[n_images] = measure(folder / "cache", n_images, whole=n_images in finished, quick=options.quick)
        finally:
            shutil.rmtree(folder)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; _s: CPU seconds, _wall: of the clock")
    for line in lines(found):
        print(line)


def measure(root: Path, n_images: int, *, whole: bool, quick: bool) -> dict[str, float]:
    """All steps of one size."""
    unit = 8 if quick else 256 if n_images <= 500_000 else 1024
    if quick:
        sparse_cache.make(root, n_images, unit, whole=whole)
    else:  # elsewhere, for what making takes would stand beside what the steps take
        words = [sparse_cache.__file__, str(root), str(n_images), str(unit), "whole" if whole else "table"]
        subprocess.run([sys.executable, *words], check=True)
    known = {"units": float(-(-n_images // unit))} | (weigh(root) if whole else {})
    for step in scale_steps.STEPS if whole else ["table"]:
        found = scale_steps.run(step, root) if quick else in_a_process(step, root)
        words = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"  {n_images} images: {words}", file=sys.stderr, flush=True)  # the last steps may take an hour
        known |= found
    return known


def weigh(root: Path) -> dict[str, float]:
    """Files, and bytes of the index beside the features, of the whole cache."""
    files = [path for path in root.rglob("*") if path.is_file()]
    done = [path.stat().st_size for path in files if path.name.startswith("u")]
    return {"files": len(files), "done_mb": sum(done) / 1e6}


def in_a_process(step: str, root: Path) -> dict[str, float]:
    """One step, with imports and memory of its own."""
    command = [sys.executable, scale_steps.__file__, step, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def lines(found: dict[int, dict[str, float]]) -> list[str]:
    """The table: a step a line, a size a column, then the slope between the last two sizes."""
    sizes = sorted(found)
    names = dict.fromkeys(name for size in sizes for name in found[size])
    shown = ["".join([f"{'':<18}", *(f"{size:>14,}" for size in sizes), f"{'slope':>8}"])]
    for name in names:
        cells = [f"{found[size][name]:>14,.3f}" if name in found[size] else f"{'-':>14}" for size in sizes]
        slope = slope_of(name, {size: found[size][name] for size in sizes if name in found[size]})
        steep = "   grows faster" if slope is not None and slope > TOO_STEEP else ""
        shown.append("".join([f"{name:<18}", *cells, f"{'-' if slope is None else f'{slope:.2f}':>8}", steep]))
    return shown


def slope_of(name: str, values: dict[int, float]) -> float | None:
    """log-log, between the last two sizes; None where the values are too small to tell."""
    if len(values) < 2:
        return None
    (small, before), (big, after) = sorted(values.items())[-2:]
    if before <= 0 or after <= 0 or (name.endswith(("_s", "_wall")) and before < SHORTEST_S):
        return None
    return math.log(after / before) / math.log(big / small)


if __name__ == "__main__":
    main()
