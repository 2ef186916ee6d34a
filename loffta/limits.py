"""How large a number may be that somebody types: what nobody means is refused before a minute is spent on it.

In: options, configurations, recipes.   Out: types for their fields, whose error says the range. Limits are far above
what makes sense: they part a slip of the finger, or a mutation, from a large experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

MANY = 1_000  # backbones, features, seeds, cells of a pooling window, settings of a search's axis
MAX_SEED = 2**32 - 1  # what every generator of the libraries takes
MAX_PX = 16_384  # side of the input; a ViT's tokens grow with its square
MAX_BATCH = 1 << 20
MAX_VIEWS = 100  # each is a store
MAX_UNIT_IMAGES = 1 << 16  # a shard of 12 ViT-B taps has 0.24 TB then

# Of a head's recipe, by the field's name. ViT-22B, the largest that was trained, is 6,144 wide and 48 deep.
RECIPE_LIMITS: Mapping[str, int] = {
    "epochs": 1_000_000,
    "batch_size": MAX_BATCH,
    "min_steps": 100_000_000,
    "min_batches": 1_000_000,
    "grid": 512,
    "width": 8_192,
    "depth": 128,
    "n_heads": 1_024,
    "mlp_ratio": 64,
    "pooled_size": 1 << 20,
    "hidden": 1 << 16,
    "output_px": 4_096,
    "eval_px": MAX_PX,
    "depth_bins": 4_096,
    "embedding_dim": 4_096,
    "dim": 8_192,
    "cnn_width": 8_192,
    "range_dim": 4_096,
    "budget": 1 << 31,
}


def between(low: int, high: int) -> AfterValidator:
    """A number from `low` to `high`, both allowed."""

    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"it must be from {low:,} to {high:,}")
        return value

    return AfterValidator(check)


Count: TypeAlias = Annotated[int, between(1, MANY)]
Seed: TypeAlias = Annotated[int, between(0, MAX_SEED)]
Pixels: TypeAlias = Annotated[int, between(1, MAX_PX)]
BatchSize: TypeAlias = Annotated[int, between(1, MAX_BATCH)]
Views: TypeAlias = Annotated[int, between(0, MAX_VIEWS)]
