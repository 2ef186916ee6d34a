"""How far the probabilities of trained heads can be believed, as trained and with a temperature.

In: the logits of all seeds on a split, and a run.   Out: the part `calibration` of results.json; and temperatures, for
the run to keep, where the split is the one that it holds out. Called behind every `measure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.errors import LofftaError, NotSaved
from loffta.evaluation.measure import summary
from loffta.machine.progress import say
from loffta.runs.run import RunPaths, save_results
from loffta.runs.temperature import Temperatures, held_out_split, read_temperatures, write_temperatures
from loffta.tasks import find_task
from loffta.tasks.calibration import calibration, equal_width, fit_temperature, log_of_mean, risks

N_COVERAGES = 50  # points of the risk-coverage curve that results keep


@dataclass(frozen=True)
class Calibrated:
    """What results.json says, and temperatures that are new."""

    told: dict[str, Any]
    fitted: Temperatures | None = None


def calibrate(
    paths: RunPaths,
    config: TrainConfig,
    split: str,
    logits: Float[np.ndarray, "S B C"],
    targets: Shaped[np.ndarray, "B *target"],
    *,
    may_fit: bool,
) -> Calibrated:
    """Nothing of a task that has no confidence, nor of one class alone.

    Args:
        may_fit: whether these are the run's own images, so that its held-out split is what it was in training.
    """
    if not find_task(config.task).has_confidence or logits.shape[2] < 2:
        return Calibrated({})
    # the run's heads, one a seed: temperatures are theirs
    whole = len(logits) == config.seeds and config.folds is None and not config.shots
    fitted = _fit(split, logits, targets) if may_fit and whole and split == held_out_split(config) else None
    found = fitted or (read_temperatures(paths, config) if whole else None)
    told: dict[str, Any] = {"as_trained": _believed(list(logits), targets)}
    if found is not None:
        told["calibrated"] = _believed([z / t for z, t in zip(logits, found.per_seed, strict=True)], targets)
        told["temperature"] = {
            "split": found.split,
            "images": found.n_images,
            "per_seed": list(found.per_seed),
            "of_mean": found.of_mean,
        }
    return Calibrated({"calibration": told}, fitted)


def save(
    paths: RunPaths,
    split: str,
    results: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any] | list[Any]],
    fitted: Temperatures | None,
) -> None:
    """As `save_results`, temperatures first.

    Raises:
        NotSaved: something cannot be written; the error has the results.
    """
    try:
        if fitted is not None:
            write_temperatures(paths, fitted)
    except LofftaError as error:
        raise NotSaved(error, results) from error
    save_results(paths, split, results, columns)


def _fit(split: str, logits: Float[np.ndarray, "S B C"], labels: Integer[np.ndarray, " B"]) -> Temperatures | None:
    found = [fit_temperature(z, labels) for z in (*logits, log_of_mean(logits))]
    known = [t for t in found if t is not None]
    if len(known) < len(found):
        say(
            f"no temperature can be fitted on the {len(labels)} images of split '{split}': every one of them is "
            "right, or the heads know nothing"
        )
        return None
    return Temperatures(tuple(known[:-1]), known[-1], split, len(labels))


def _believed(of_seeds: Sequence[Float[np.ndarray, "B C"]], labels: Integer[np.ndarray, " B"]) -> dict[str, Any]:
    figures = [calibration(logits, labels) for logits in of_seeds]
    bins = [equal_width(logits, labels) for logits in of_seeds]
    n_images = np.sum([of_seed.n_images for of_seed in bins], axis=0)
    means = [
        np.nansum([part * of_seed.n_images for of_seed, part in zip(bins, parts, strict=True)], axis=0)
        for parts in ([b.confidence for b in bins], [b.accuracy for b in bins])
    ]
    at = np.ceil(np.arange(1, N_COVERAGES + 1) * len(labels) / N_COVERAGES).astype(int) - 1
    return {
        "figures": {name: summary([of_seed[name] for of_seed in figures]) for name in figures[0]},
        "bins": [
            {"images": int(n), "confidence": float(c / n) if n else None, "accuracy": float(a / n) if n else None}
            for n, c, a in zip(n_images, *means, strict=True)
        ],
        "risks": np.mean([risks(logits, labels)[at] for logits in of_seeds], axis=0).tolist(),
    }
