"""What results.json says of a run beside how good it is: features, images, training.

In: a run, its configuration and its heads.   Out: parts of results.json. Called by whoever measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loffta.config import TrainConfig
from loffta.dataset.features import Feature
from loffta.evaluation.findings import relevance
from loffta.heads import Head
from loffta.heads.recipe import Recipe
from loffta.machine.usage import Cost, Meter, peak_rss_mib
from loffta.runs.known_images import read_known
from loffta.runs.records import SearchTable, Training
from loffta.runs.run import RunPaths, read_json
from loffta.runs.turns import heads_told
from loffta.store.cache import Cache


def describe_training(paths: RunPaths, config: TrainConfig, recipe: Recipe, heads: Sequence[Head]) -> dict[str, Any]:
    """What results.json says of the training: its length, a search, the backbones' relevance."""
    found: dict[str, Any] = {}
    if paths.training.exists():
        told = read_json(paths.training, Training)
        found["training"] = told.model_dump(exclude={"seconds", "cost"}, exclude_none=True)
    if config.search:
        table = read_json(paths.search, SearchTable).model_dump()
        found["search"] = {name: table[name] for name in ("metric", "validated_on", "seconds", "chosen")}
        found["recipe"] = config.recipe | {name: table["chosen"][name] for name in ("lr", "weight_decay")}
    if getattr(recipe, "relevance_weight", 0.0) > 0:
        found["relevance"] = relevance(heads)
    return found


def cost_told(paths: RunPaths, meter: Meter) -> dict[str, Any]:
    """What results.json says of the cost: that of the search and the training, all their starts, and of measuring."""
    cost = meter.cost()
    if paths.search.exists():
        cost += Cost.of_json(read_json(paths.search, SearchTable).cost)
    if paths.training.exists():
        cost += Cost.of_json(read_json(paths.training, Training).cost)
    return {"seconds": meter.seconds, "peak_rss_mib": peak_rss_mib(), "cost": cost.as_json()}


def count_left_out(n_bad: int, n_unlabelled: int) -> dict[str, int]:
    """Images that are not measured, by why; few sets have images without a label, and only theirs are told."""
    return {"bad": n_bad} | ({"unlabelled": n_unlabelled} if n_unlabelled else {})


def describe(
    config: TrainConfig, features: Sequence[Feature], split: str, n_used: int, left_out: dict[str, int]
) -> dict[str, Any]:
    """What results.json says of the run and its features; `measure` adds how good it is.

    Args:
        left_out: images of the split by why they are not measured: bad; unlabelled, where there are any.
    """
    return {
        "task": config.task,
        "head": config.head,
        "split": split,
        "n": n_used,
        "metrics": {},
        "features": [
            {
                "store": feature.store.name,
                "label": feature.spec.backbone,
                "recipe_hash": feature.store.hash,
                "taps": list(feature.spec.taps),
            }
            for feature in features
        ],
        "images": {"used": n_used, **left_out},
        **heads_told(config, split),
        "recipe": config.recipe,
    }


def compare(paths: RunPaths, cache: Cache) -> dict[str, Any]:
    """What results.json says where the images are not just those that the run knows."""
    known = read_known(paths)
    if known is None:
        return {}
    return known.growth_in(cache) if known.begins(cache) else {"other_set": cache.table.source}
