"""Parts of a split that the image set itself does not have: drawn by the images' keys, or class by class, from a seed.

In: a table of images.   Out: which images are held out, for `--holdout` and for the validation of `--search`.
`runs.holdout` keeps the former for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from loffta.config import ScanConfig, TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.store.table import ImageTable

Config = TypeVar("Config", TrainConfig, ScanConfig)

HOLDOUT = "holdout"  # the split's name
OUT_OF_FOLD = "out-of-fold"  # what folds test: all of the training split, each image by a head that has not seen it
_N_SHOWN = 5  # classes that a message names
_STREAM = 2  # of the search's part; old runs drew their holdout from stream 1


def draw_by_key(keys: Sequence[str], labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which images are held out: those whose key, hashed with the seed, falls below `fraction`.

    No other image has a say, so that an image that is held out stays so whatever is added, however the set is sorted or
    listed anew (the test set by identifier of Geron, Hands-On Machine Learning, chapter 2). The price is chance in the
    number: of n images fraction * n, with a standard deviation of sqrt(n * fraction * (1 - fraction)). Every class
    keeps the image with the highest hash for the training; a new one can only free it.

    Args:
        labels: [n], classes.
    """
    place = np.array([_lot(key, seed) for key in keys])
    held = place < fraction
    for label in np.unique(labels[held]):
        of_class = np.flatnonzero(labels == label)
        held[of_class[place[of_class].argmax()]] = False
    return held


def _lot(key: str, seed: int) -> float:
    """A number from 0 to 1, the same for the same key and seed for ever."""
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(errors="surrogatepass"), digest_size=8, person=b"holdout")
    return int.from_bytes(digest.digest(), "big") / 2**64


def draw_part(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """What validates a search: `fraction` of all, rounded, and of every class its share, give or take one image.

    Every class keeps an image for the training, so of a class with one image none is held out.

    Args:
        labels: [n], classes.
    """
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM]))
    classes, sizes = np.unique(labels, return_counts=True)
    wanted = fraction * sizes
    taken = np.minimum(np.floor(wanted).astype(np.int64), sizes - 1)
    n_left = round(fraction * len(labels)) - int(taken.sum())
    # the largest remainders first; equal ones by lot: in order, rare classes with high numbers would never be held out
    order = np.lexsort((rng.random(len(classes)), taken - wanted))
    more = [i for i in order if taken[i] < sizes[i] - 1][: max(0, n_left)]
    taken[more] += 1
    held = np.zeros(len(labels), dtype=bool)
    for label, n_held in zip(classes, taken, strict=True):
        held[rng.permutation(np.flatnonzero(labels == label))[:n_held]] = True
    return held


def check_part(held: NDArray[np.bool_], labels: NDArray[np.int64], table: ImageTable, what: str) -> str | None:
    """What a user should know about a part that was drawn: the classes of which it has no image, because there is one.

    Args:
        what: the option that asked for the part.
    Raises:
        LofftaError: nothing is held out.
    """
    if not held.any():
        raise LofftaError(
            f"no image of {len(held)} is held out: the share is too small, for every class keeps one for the training",
            where=what,
            remedy="extract more images, hold a larger share out, or name a split to measure on instead",
        )
    found, sizes = np.unique(labels, return_counts=True)
    single = [table.classes[label] if label >= 0 else "no class" for label in found[sizes == 1]]
    if not single:
        return None
    return f"{what}: {name_some(single)} with one image: it is trained on, and none is held out"


def name_some(classes: Sequence[str]) -> str:
    """`class a`, `classes a, b`, or the first few and their number."""
    if len(classes) == 1:
        return f"class {classes[0]}"
    shown = ", ".join(classes[:_N_SHOWN])
    return f"classes {shown}" if len(classes) <= _N_SHOWN else f"{len(classes)} classes ({shown}, ...)"


def choose_splits(
    config: Config, table: ImageTable, where: str | Path, learnable: NDArray[np.bool_] | None = None
) -> Config:
    """The configuration with the split to test on settled: `holdout` where it is drawn and nothing of `test` counts.

    Args:
        where: the table is, for messages.
        learnable: per row, whether it has the target that is learnt; None: labels are, and those with one have it.
    Raises:
        UsageError: splits that contradict each other, or no split to test on.
    """
    has_one = table.is_labelled() if learnable is None else learnable
    known = dict.fromkeys(split for split, has in zip(table.splits, has_one, strict=True) if has)
    lacking = "label" if learnable is None else "target"
    no_test = "has no split 'test'" if "test" not in table.split_sizes() else f"has no {lacking} in split 'test'"
    if config.holdout is not None:
        if config.validate_on is not None:
            raise UsageError(
                "--holdout and --validate-on exclude each other",
                where="--holdout",
                remedy="leave one of them out: what is held out is measured too",
            )
        if HOLDOUT in table.split_sizes():
            raise UsageError(
                f"the image set has a split '{HOLDOUT}' of its own",
                where="--holdout",
                remedy=f"measure on it with --test-on {HOLDOUT} or --validate-on {HOLDOUT}",
            )
        if config.test_on == "test" and "test" not in known:
            config = config.model_copy(update={"test_on": HOLDOUT})
    if config.test_on == "test" and "test" not in known:
        raise UsageError(
            f"the image set {no_test}",
            where=where,
            remedy=f"hold a part of it back with --holdout 0.2, or name a split with {lacking}s with --test-on "
            f"(known: {', '.join(known)})",
        )
    _refuse_trained(config.validate_on, config.train_on)
    return config


def _refuse_trained(validate_on: str | None, train_on: str) -> None:
    if validate_on is not None and {*validate_on.split("+")} & {*train_on.split("+")}:
        raise UsageError(
            f"split '{validate_on}' is trained on",
            where="--validate-on",
            remedy="validate on images that are not: leave it out of --train-on, or use --holdout 0.2",
        )
