"""A finished run made ready for images: its heads, and the features that they are fed, without its cache.

In: a run's directory.   Out: OpenedRun. Called by `evaluate` and `predict` of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loffta.config import TrainConfig
from loffta.dataset.dense import refuse_dense
from loffta.dataset.features import choose_features
from loffta.errors import LofftaError
from loffta.evaluation.evaluate import score
from loffta.evaluation.findings import Findings
from loffta.evaluation.trained import load_heads, trained_recipe
from loffta.heads import Head
from loffta.heads.recipe import Recipe
from loffta.runs.known_images import open_cache
from loffta.runs.origins import Origins, read_origins
from loffta.runs.run import RunPaths, open_run
from loffta.runs.temperature import Temperatures, need_temperatures
from loffta.tasks import Task, find_task


@dataclass(frozen=True)
class OpenedRun:
    """A run whose heads can predict."""

    paths: RunPaths
    config: TrainConfig
    recipe: Recipe  # with the precision of the training
    origins: Origins
    heads: list[Head]  # one per seed and fold or draw, in evaluation mode, on the device
    temperatures: Temperatures | None = None  # where calibrated probabilities were asked for

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return find_task(self.config.task)

    def predict(self, features: Sequence[Tensor], told: Findings | None = None) -> Float[Tensor, "S B C"]:
        """Logits of every seed, on the CPU; one [B, L, *shape] per Feature is due. `told` gets it, too."""
        return score(self.heads, features, self.recipe, told)

    def probabilities(
        self, logits: Float[Tensor, "S B C"]
    ) -> tuple[Float[np.ndarray, "B C"], Float[np.ndarray, "S B C"]]:
        """The mean of the seeds', summed in float64, and each seed's own; calibrated where that was asked for."""
        if self.temperatures is not None:
            return self.temperatures.apply(logits.numpy())
        found = self.task.activation(logits).numpy()
        return found.mean(axis=0, dtype=np.float64).astype(found.dtype), found


def open_for_images(
    root: Path, device: torch.device, cache_root: Path | None = None, *, calibrated: bool = False
) -> OpenedRun:
    """Opens a finished run.

    Args:
        cache_root: where the cache is now, for runs made before runs kept what is needed; None: where it was.
        calibrated: probabilities are to be calibrated.
    Raises:
        LofftaError: no run, no trained head, a run of `train --online`; or an old run whose cache is gone; or no
            temperature where one is asked for.
    """
    paths, config = open_run(root)
    if config.online is not None:
        raise LofftaError(
            "this run was trained online, and its heads belong to a backbone without a recipe of stored features",
            where=paths.config,
            remedy="train a head on a cache (`loffta extract`, `loffta train CACHE`) to use it on other images",
        )
    refuse_dense(config.task, "predict", paths.config)
    temperatures = need_temperatures(paths, config) if calibrated else None
    recipe = trained_recipe(paths, config)
    if paths.stores.exists():
        origins = read_origins(paths.stores)
    else:
        origins = _origins_of_cache(paths, config, recipe, cache_root)
    heads = load_heads(paths, config, origins.features, recipe, len(origins.classes), shown=True)
    return OpenedRun(paths, config, recipe, origins, [head.to(device) for head in heads], temperatures)


def _origins_of_cache(paths: RunPaths, config: TrainConfig, recipe: Recipe, cache_root: Path | None) -> Origins:
    """For a run that an older loffta made."""
    try:
        cache = open_cache(paths, config, cache_root)
    except LofftaError as error:
        raise LofftaError(
            f"this run keeps no {paths.stores.name}, and its cache is gone",
            where=cache_root or config.cache,
            remedy="bring the cache back, or name its place with --cache; newer runs do without",
        ) from error
    features = choose_features(cache, config.features, recipe.kinds(), default_taps="all")
    return Origins.of(features, cache.table.classes)
