"""The runs of dense_accuracy.py: one cache of scenes, and a training for each cell of its tables.

In: a folder, tasks, seeds and steps.   Out: Bench, whose `score` trains what is not there yet and measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accuracy import ALL, BACKBONES, CONTROL
from dense_scores import Score, score_of

from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.extraction.extract import run
from loffta.machine.process import StopFlag
from loffta.runs.records import SearchTable
from loffta.runs.run import RunPaths, read_json
from loffta.training.train import train

TASKS = ("segmentation", "depth", "boundaries")
LAST, MIDDLE = "stages.4", "stages.2,stages.3,stages.4"
LAYERS = ("stages.1", "stages.2", "stages.3", "stages.4")
KEPT = {backbone: "blocks.5,blocks.11" if backbone == CONTROL else ",".join(LAYERS) for backbone in ALL}
SOLVED = ("bicubic", "deconv", "dpt", "combo-deap")  # have a `budget`
RATES = (1e-3, 3e-3, 1e-2)
RECIPE = {"batch_size": 8, "warmup_fraction": 0.1, "final_lr_factor": 0.0, "weight_decay": 1e-4, "output_px": 64}
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Bench:
    """Where the runs lie, and how they are trained."""

    work: Path
    tasks: tuple[str, ...]
    seeds: int
    steps: int
    stop: StopFlag
    quick: bool = False

    def extract(self) -> None:
        """The cache of all backbones, and Lite0's in int8."""
        self._extract("float16", ALL)
        self._extract("int8", ALL[:1])

    def _extract(self, dtype: str, backbones: Sequence[str]) -> None:
        px = 32 if self.quick else 128
        listed = [
            {"name": name, "weights": "random:0" if self.quick else weights, "taps": KEPT[backbone], "image_px": px}
            for backbone, (name, weights) in BACKBONES.items()
            if backbone in backbones
        ]
        asked = {
            "source": f"demo:scenes#px={px},n={20 if self.quick else 700}",
            "cache": self.work / dtype,
            "backbones": listed,
            "kinds": ["grid"],
            "dtype": dtype,
            "targets": ["mask", "depth", "instances"],
            "target_px": px // 2,
            "batch_size": 32,
            "device": "cpu",
        }
        run(parse(ExtractConfig, asked, where=dtype), self.stop)

    def fit(
        self,
        task: str,
        head: str,
        backbones: Sequence[str] = ALL[:1],
        taps: str = MIDDLE,
        variant: str = "",
        settings: Mapping[str, Any] = NO_SETTINGS,
        dtype: str = "float16",
        **changes: Any,
    ) -> Path:
        """One run, named after what it is, so that tables share it; a finished one is not repeated.

        A head's first run of a task searches its rate, the others take it over.

        Args:
            settings: of the recipe, beside RECIPE.
        """
        words = (head, "+".join(backbones), taps.replace("stages.", ""), variant)
        path = self.work / "runs" / task / "-".join(filter(None, words))
        first = (tuple(backbones), taps, variant) == (ALL[:1], MIDDLE, "")
        recipe = RECIPE | {"min_steps": 1 if self.quick else self.steps} | dict(settings)
        if head in SOLVED and "budget" not in recipe:
            recipe["budget"] = self.score(task, "deap", backbones, taps).n_parameters
        if first:
            changes |= {"search": True, "validate_on": "val"}
            recipe["search_lr"] = RATES
        else:
            recipe["lr"] = self.rate(task, head)
        if self.quick:
            recipe |= {"batch_size": 32, "output_px": 16}
        values = {
            "cache": self.work / dtype,
            "head": head,
            "task": task,
            "features": [f"{BACKBONES[b][0]}:{KEPT[b] if b == CONTROL else taps}" for b in backbones],
            "seeds": self.seeds,
            "device": "cpu",
            "recipe": recipe,
        }
        train(parse(TrainConfig, values | changes, where=path), path, self.stop)
        return path

    def rate(self, task: str, head: str) -> float:
        """The learning rate that the first run of a head has found."""
        chosen = read_json(RunPaths(self.fit(task, head)).search, SearchTable).chosen
        assert chosen is not None, "the run is finished"
        return chosen.lr

    def score(
        self, task: str, *words: Any, output_px: int | None = None, size: str | None = None, **changes: Any
    ) -> Score:
        """Of the run that `fit` makes."""
        path = self.fit(task, *words, **changes)
        name = "-".join(filter(None, (path.name, str(output_px or ""), size)))
        return score_of(path, self.work / "scores" / task / f"{name}.npz", output_px=output_px, size=size)
