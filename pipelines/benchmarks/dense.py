"""Step time and peak memory of every dense head, against dense-linear, on one batch that lies in memory.

Run:     python pipelines/benchmarks/dense.py [--cells 37] [--output-px 448] [--batch 32] [--dim 768] [--steps 3]
         python pipelines/benchmarks/dense.py --feed [--images 256] [--pairs 7]     (under 3 minutes: dense_feed.py)
Small:   python pipelines/benchmarks/dense.py --cells 4 --output-px 32 --batch 2 --dim 16 --steps 1
Needs:   nothing but loffta; on CUDA the measure is torch's peak of allocated memory, on a CPU the process's peak of
         resident memory over what it held before the head was built: features and Python are not in it.
Expect:  deap under 8 GiB with 37 x 37 cells to 448 px in a batch of 32, forward and backward: its scores alone would
         be 4.4 GB in one tensor. Seen on a CPU: 1.1 GiB (docs/methods.md).
Method:  Every head in a process of its own, with its recipe's defaults, one tap of a ViT-B's width (dpt four), one
         output. A step is `prepare`, forward, the mean square of the outputs, backward; the first warms up, the
         fastest of the others counts. Seconds of a busy machine say nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import dense_feed
import torch

from loffta.heads import DENSE_HEADS, build_dense_head, find_head
from loffta.heads.dense import DenseRecipe
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

REFERENCE = "dense-linear"
THUMB_PX = 112


class Measured(NamedTuple):
    """One head on one batch."""

    n_parameters: int
    seconds: float  # of the fastest step but the first
    peak_mib: float


def main() -> None:
    """Measures every head, prints a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=37, help="rows and columns of the grid")
    parser.add_argument("--output-px", type=int, default=448)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--steps", type=int, default=3, help="that are timed, after one that is not")
    parser.add_argument("--heads", nargs="+", default=[name for name in DENSE_HEADS if name != "dense-knn"])
    parser.add_argument("--feed", action="store_true", help="what feeds heads, instead of the heads: see dense_feed.py")
    parser.add_argument("--images", type=int, default=256, help="of --feed")
    parser.add_argument("--pairs", type=int, default=7, help="of --feed: interleaved repeats")
    chosen = parser.parse_args()
    if chosen.feed:
        dense_feed.print_ratios(chosen.images, chosen.pairs)
        return
    print(f"{chosen.cells} x {chosen.cells} cells of {chosen.dim}, batch {chosen.batch}, to {chosen.output_px} px")
    print(f"{'head':14}{'parameters':>12}{'s a step':>10}{'x linear':>10}{'peak MiB':>10}{'x linear':>10}")
    reference = _alone(REFERENCE, chosen)
    for name in dict.fromkeys([REFERENCE, *chosen.heads]):
        found = reference if name == REFERENCE else _alone(name, chosen)
        slower, larger = found.seconds / reference.seconds, found.peak_mib / max(reference.peak_mib, 1e-9)
        print(
            f"{name:14}{found.n_parameters:>12,}{found.seconds:>10.3f}{slower:>10.2f}"
            f"{found.peak_mib:>10,.0f}{larger:>10.2f}",
            flush=True,
        )


def _alone(name: str, chosen: argparse.Namespace) -> Measured:
    """In a process of its own: peaks of memory never fall."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (name, chosen))


def measure(name: str, chosen: argparse.Namespace) -> Measured:
    """Builds a head and takes its steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entry = find_head(name)
    recipe = entry.recipe.model_validate({"output_px": chosen.output_px})
    assert isinstance(recipe, DenseRecipe)
    taps = ("a", "b", "c", "d") if name == "dpt" else ("last",)
    specs = [FeatureSpec("net", taps, "grid", (chosen.cells, chosen.cells, chosen.dim), 224)]
    features = [torch.randn(chosen.batch, len(taps), *specs[0].shape, device=device)]
    if getattr(entry.head, "needs_thumb", False):
        specs.append(FeatureSpec("images", ("thumb",), "thumb", (THUMB_PX, THUMB_PX, 3), THUMB_PX))
        shape = (chosen.batch, 1, *specs[1].shape)
        features.append(torch.randint(0, 256, shape, dtype=torch.uint8, device=device))
    before = _peak_mib(device)
    head = build_dense_head(name, specs, Readout((1,)), recipe, 0).to(device).train()
    seconds = []
    for step in range(chosen.steps + 1):
        begun = time.perf_counter()
        rng = torch.Generator(device).manual_seed(step)
        head(head.prepare(features), rng).square().mean().backward()
        head.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return Measured(head.n_adapter_parameters(), min(seconds[1:]), _peak_mib(device) - before)


def _peak_mib(device: torch.device) -> float:
    """The most that was held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's memory, too, until an exec
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


if __name__ == "__main__":
    main()
