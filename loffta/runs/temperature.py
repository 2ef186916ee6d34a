"""The temperatures of a run: what its logits are divided by, so that they are as sure as they are right.

In: a run.   Out: Temperatures, kept in one file under the checksum that heads have. A run without held-out images has
none, nor has one of an older version: then whoever needs them says what to do. `evaluation.calibrated` fits them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from loffta.config import TrainConfig
from loffta.dataset.splits import HOLDOUT
from loffta.errors import LofftaError, UsageError
from loffta.files.documents import from_json
from loffta.files.tensor_file import read_tensors, write_tensors
from loffta.runs.results_text import FittedOn
from loffta.runs.run import RunPaths
from loffta.tasks import find_task
from loffta.tasks.calibration import log_of_mean, log_softmax


@dataclass(frozen=True)
class Temperatures:
    """Fitted after the training, on images that neither it nor the test has seen."""

    per_seed: tuple[float, ...]
    of_mean: float  # of the mean of the seeds' probabilities
    split: str
    n_images: int

    def apply(self, logits: Float[np.ndarray, "S B C"]) -> tuple[Float[np.ndarray, "B C"], Float[np.ndarray, "S B C"]]:
        """Probabilities of the seeds together, and of each by itself."""
        each = [np.exp(log_softmax(z / t)) for z, t in zip(logits, self.per_seed, strict=True)]
        together = np.exp(log_softmax(log_of_mean(logits) / self.of_mean))
        return together.astype(np.float32), np.stack(each).astype(np.float32)


def held_out_split(config: TrainConfig) -> str | None:
    """The split that temperatures are fitted on: never one that was trained on, or that tests."""
    found = HOLDOUT if config.holdout is not None else config.validate_on
    used = {*config.train_on.split("+"), *config.test_on.split("+")}
    return None if found is None or used & {*found.split("+")} else found


def write_temperatures(paths: RunPaths, found: Temperatures) -> None:
    """Puts them beside the heads."""
    tensors = {"per_seed": torch.tensor(found.per_seed, dtype=torch.float64)}
    tensors["of_mean"] = torch.tensor(found.of_mean, dtype=torch.float64)
    told = FittedOn(split=found.split, images=found.n_images)
    write_tensors(paths.temperature, tensors, json.dumps(told.model_dump()))


def read_temperatures(paths: RunPaths, config: TrainConfig) -> Temperatures | None:
    """None where none were fitted.

    Raises:
        LofftaError: the file is damaged, or of other heads.
    """
    try:
        tensors, state = read_tensors(paths.temperature)
        told = FittedOn.model_validate(from_json((state or "").encode()))
        per_seed, of_mean = tensors["per_seed"].tolist(), float(tensors["of_mean"])
        if len(per_seed) != config.seeds or not all(0 < t < float("inf") for t in (*per_seed, of_mean)):
            raise ValueError(f"it is not of {config.seeds} heads")
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise LofftaError(
            f"this file of temperatures is damaged ({error})",
            where=paths.temperature,
            remedy=f"delete it; {_how_to_fit(config)}",
        ) from error
    return Temperatures(tuple(per_seed), of_mean, told.split, told.images)


def need_temperatures(paths: RunPaths, config: TrainConfig) -> Temperatures:
    """The same where they must be there.

    Raises:
        UsageError: the task has no confidence.
        LofftaError: none were fitted; it says how to.
    """
    if not find_task(config.task).has_confidence:
        raise UsageError(
            f"a temperature is for one class per image, and this run's task is {config.task}",
            where=paths.config,
            remedy="leave --calibrated out",
        )
    found = read_temperatures(paths, config)
    if found is None:
        raise LofftaError("this run has no temperature", where=paths.temperature, remedy=_how_to_fit(config))
    return found


def _how_to_fit(config: TrainConfig) -> str:
    split = held_out_split(config)
    if split is not None and config.online is None:
        return f"fit it on the images held out: `loffta evaluate RUN --split {split}`"
    return (
        "train again with another --out and images that are neither trained on nor tested: --holdout 0.2 (and a split "
        "to test on) or --validate-on SPLIT"
    )
