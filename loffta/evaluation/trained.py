"""What a finished run has trained: its heads and their recipe.

In: a run, Features.   Out: heads in evaluation mode. Called by `evaluate`, `dense` and `online`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loffta.config import TrainConfig, parse
from loffta.dataset.features import Feature
from loffta.errors import LofftaError
from loffta.heads import Head, build_head, find_head
from loffta.heads.recipe import Recipe
from loffta.runs.records import Training
from loffta.runs.run import RunPaths, load_head, read_json
from loffta.runs.turns import homes, shown_homes

AT_ONCE = 64  # images that an evaluation takes at least, where the recipe's batch is not smaller


def trained_recipe(paths: RunPaths, config: TrainConfig) -> Recipe:
    """A run's recipe with the precision that it was trained in: heads are evaluated in the same, as in ComBo's code.

    A run that an older loffta made keeps no precision: it was evaluated in float32, and is.
    """
    recipe = parse(find_head(config.head).recipe, config.recipe, where=f"{paths.config}: recipe")
    precision = read_json(paths.training, Training).precision if paths.training.exists() else None
    return recipe.model_copy(update={"precision": precision or "fp32"})


def load_heads(
    paths: RunPaths,
    config: TrainConfig,
    features: Sequence[Feature],
    recipe: Recipe,
    n_classes: int,
    *,
    shown: bool = False,
) -> list[Head]:
    """The trained heads of a run, one per seed and turn, in evaluation mode.

    Args:
        shown: those alone that stand for the run on new images: all folds, but of draws those with the most images.
    Raises:
        LofftaError: a head is missing, damaged, or does not fit the cache.
    """
    specs = [feature.spec for feature in features]

    def build(seed: int) -> Head:
        return build_head(config.head, specs, n_classes, recipe, seed)

    return load_each(paths, config, build, n_classes, shown=shown)


def load_each(
    paths: RunPaths, config: TrainConfig, build: Callable[[int], Head], n_classes: int, *, shown: bool = False
) -> list[Head]:
    """The same of heads that `build` makes from a seed; LofftaError as `load_heads`."""
    heads = []
    found = shown_homes(paths, config) if shown else homes(paths, config)
    for path, seed in ((home.head(seed), seed) for home in found for seed in range(config.seeds)):
        state = load_head(path)
        try:
            head = build(seed)
            head.load_state_dict(state)
        except (RuntimeError, MemoryError) as error:
            raise LofftaError(
                f"the trained head does not fit {n_classes} classes of these features",
                where=path,
                remedy="was the cache changed? train again, or name the cache of the training with --cache",
            ) from error
        heads.append(head.eval())
    return heads


def batch_size_of(paths: RunPaths, recipe: Recipe) -> int:
    """Images at a time: the training's, whose memory was enough; AT_ONCE where it took fewer, for it had few."""
    trained = read_json(paths.training, Training).batch_size if paths.training.exists() else 0
    return min(recipe.batch_size, max(AT_ONCE, trained))
