"""From the shell to the result: commands on little data against bare timm and torch programs, in fresh processes.

Run:     python pipelines/benchmarks/start.py [--pairs 7] [--dir DIR]
Needs:   nothing but loffta.
Expect:  predict and train at most 1.3 times their rivals, the other commands under half a second; about three minutes.
Method:  `loffta predict` on one image against bare_predict.py (the same network built, its weights loaded, one image
         decoded, resized, normalised, forward); `loffta train` of a linear probe on 1,000 digits against bare_train.py
         (the same head, steps and schedule on pooled features in one .npz file). Each run is a process of its own, from
         its start to its end, files warm. They take turns in alternating order; ratios are medians over the pairs, and
         the seconds beside them are medians, too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from clock import alternate, print_machine, ratio_text
from safetensors.torch import save_file

from loffta.dataset.features import choose_features
from loffta.feed.batches import Feed
from loffta.images.sources import open_source
from loffta.store.cache import Cache

GOAL, GOAL_S, EPOCHS = 1.3, 0.5, 100
BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "weights.safetensors"  # random: which numbers it holds takes no time
HERE = Path(__file__).parent


def main() -> None:
    """Makes a cache and a run, measures, prints and deletes."""
    parser = argparse.ArgumentParser(description="start-up benchmark: commands against bare programs")
    parser.add_argument("--pairs", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-", dir=options.dir))
    try:
        print_machine(("torch", "timm", "numpy"))
        prepare(folder)
        compare("predict", *predicting(folder), options.pairs)
        compare("train", *training(folder), options.pairs)
        answer(folder, options.pairs)
    finally:
        shutil.rmtree(folder)


def prepare(folder: Path) -> None:
    """A cache of the digits, a run, one image, and the cache's pooled features in one file."""
    torch.manual_seed(0)
    save_file(timm.create_model(BACKBONE).state_dict(), folder / WEIGHTS)
    extract = ["extract", "demo:digits", "--backbone", BACKBONE, "--weights", folder / WEIGHTS]
    loffta(*extract, "--taps", "last", "--image-px", "64", "--cache", folder / "cache")
    loffta("train", folder / "cache", "--head", "linear", "--set", "epochs=5", "--out", folder / "run")
    source = open_source("demo:digits")
    keys = source.listing().keys
    (folder / "image.png").write_bytes(source.read(keys[0]))
    cache = Cache.open(folder / "cache")
    rows = np.arange(len(cache.table))
    with Feed(choose_features(cache, (), ("mean",), default_taps="last"), rows, batch_size=len(rows)) as feed:
        features = next(feed.in_order()).features[0][:, 0].numpy().copy()
    test = np.isin(rows, cache.table.rows_of("test"))
    np.savez(folder / "features.npz", features=features, labels=cache.table.labels, test=test)


def predicting(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Ours and the rival's."""
    image = folder / "image.png"
    return (
        lambda: loffta("predict", folder / "run", image, "--out", folder / "predictions.parquet"),
        lambda: python(HERE / "bare_predict.py", BACKBONE, folder / WEIGHTS, image),
    )


def training(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Ours, a new run each time, and the rival's."""

    def ours() -> None:
        out = folder / "new-run"
        shutil.rmtree(out, ignore_errors=True)
        loffta("train", folder / "cache", "--head", "linear", "--set", f"epochs={EPOCHS}", "--out", out)

    return ours, lambda: python(HERE / "bare_train.py", folder / "features.npz", str(EPOCHS))


def compare(name: str, ours: Callable[[], None], bare: Callable[[], None], n_pairs: int) -> None:
    """One line: the ratio, then the seconds of both."""
    pairs = []
    for repeat in range(-1, n_pairs):  # the first fills the page cache
        seconds = alternate({"ours": ours, "bare": bare}, repeat)
        if repeat >= 0:
            pairs.append((seconds["ours"], seconds["bare"]))
    ours_s, bare_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    within = statistics.median(a / b for a, b in pairs) <= GOAL
    text = ratio_text(pairs, f"times the bare program: loffta {name}")
    print(f"{text}, goal at most {GOAL}: {'reached' if within else 'MISSED'}; {ours_s:.2f} s and {bare_s:.2f} s")


def answer(folder: Path, n_times: int) -> None:
    """Commands that compute nothing: median seconds."""
    for words in (["--help"], ["models"], ["info", folder / "cache"]):
        job = {"ours": lambda words=words: loffta(*words)}
        median = statistics.median([alternate(job, repeat)["ours"] for repeat in range(-1, n_times)][1:])
        verdict = "reached" if median < GOAL_S else "MISSED"
        print(f"{median:6.2f} s loffta {words[0]}, goal {GOAL_S}: {verdict}", flush=True)


def loffta(*words: str | Path) -> None:
    """One command in a process of its own."""
    python("-m", "loffta_cli", *words)


def python(*words: str | Path) -> None:
    """One program in a process of its own; its output is shown where it fails."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
