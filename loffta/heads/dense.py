"""What dense heads have in common: a readout in place of classes, a size of their output, rows for instances.

In:  patch tokens of the chosen taps, for some heads thumbnails too.   Out: maps [B, C, S, S] with S = `output_px`.
`build_dense_head` in `loffta.heads` builds one; what its C outputs mean, the tasks say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loffta.errors import UsageError
from loffta.heads.base import HeadBase
from loffta.heads.block import draw_torch_weight
from loffta.heads.recipe import Recipe
from loffta.targets import DenseSettings, Readout
from loffta.tokens import FeatureSpec, Kind


class DenseRecipe(Recipe, frozen=True):
    """A recipe whose length is counted in steps, as the papers do: `min_steps`, rounded up to whole epochs."""

    epochs: PositiveInt = 1
    output_px: PositiveInt = 224  # side of the maps that the loss sees; another may be asked for after the training
    # what a protocol fixes beside: see `targets.DenseSettings`
    depth_as: Literal["direct", "bins"] = "direct"
    depth_bins: PositiveInt = 256
    min_depth: PositiveFloat = 1e-3
    max_depth: PositiveFloat = 10.0
    eigen_crop: bool = False
    flip_average: bool = False
    eval_px: PositiveInt | None = None
    tolerance: float = Field(0.0075, gt=0, le=1)
    boxes_by_class: bool = False
    embedding_dim: PositiveInt = 32
    instance_pixels: PositiveInt | None = 256
    sampled_instances: PositiveInt = 4096
    min_instances: PositiveInt = 2
    min_instance_area: NonNegativeInt = 0

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens alone, unless the head says more."""
        return ("grid",)

    def settings(self) -> DenseSettings:
        """What tasks need to know."""
        return DenseSettings(**self.model_dump(include={field.name for field in fields(DenseSettings)}))

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments that all dense heads have."""
        return {"output_px": self.output_px}


class DenseBase(HeadBase):
    """A head that gives maps. `output_px` may be set anew at any time: the same weights answer at another size."""

    needs_thumb: ClassVar[bool] = False  # the last feature is the images' thumbnails, [B, 1, T, T, 3] of uint8
    default_taps: ClassVar[str] = "last"
    proxies: nn.Parameter | None  # [n, C], a row per training instance

    def __init__(self, specs: Sequence[FeatureSpec], readout: Readout, output_px: int) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.readout = readout
        self.output_px = output_px
        self.register_parameter("proxies", None)

    def add_proxies(self, n: int, rng: torch.Generator) -> None:
        """Gives it a row per training instance, which pixels are told apart by; kept with the weights.

        They serve the loss alone, so `n_adapter_parameters` leaves them out, as papers do. Drawn as torch draws the
        weights of a linear layer without bias.
        """
        rows = torch.empty(n, self.readout.n_outputs)
        draw_torch_weight(rows, rng)
        self.proxies = nn.Parameter(rows.to(next(self.parameters()).device))

    def n_adapter_parameters(self) -> int:
        """What papers count: all parameters but the proxies."""
        return sum(parameter.numel() for name, parameter in self.named_parameters() if name != "proxies")

    def no_decay(self) -> set[str]:
        """None: the official codes have one group of parameters."""
        return set()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Makes room for the proxies of a trained head: how many there are, its weights alone say."""
        rows = state_dict.get(prefix + "proxies")
        if rows is not None and (self.proxies is None or self.proxies.shape != rows.shape):
            self.proxies = nn.Parameter(torch.empty_like(rows, device=next(self.parameters()).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def solve_budget(
    build: Callable[[int, int | None, torch.Generator], nn.Module], budget: int, *, n_inputs: int, step: int, head: str
) -> tuple[int, int]:
    """Two widths with which a head has the most parameters within a budget.

    First the main one, with the second that goes with it unasked; then the second takes what is left.

    Args:
        build: a network of both widths; None: the second follows from the first.
        n_inputs: of the first map; bounds the width.
        step: the main width is a multiple of it.
    Raises:
        UsageError: the narrowest has too many.
    """

    def count(width: int, second: int | None) -> int:
        return sum(parameter.numel() for parameter in build(width, second, torch.Generator()).parameters())

    widths = range(step, budget // n_inputs + step + 1, step)
    main = solve_width(lambda width: count(width, None), budget, widths, head=head)
    return main, solve_width(lambda second: count(main, second), budget, range(1, math.isqrt(budget) + 2), head=head)


def solve_width(count: Callable[[int], int], budget: int, widths: Sequence[int], *, head: str) -> int:
    """The largest width whose parameters, `count` of it, are within the budget; `count` rises with the width.

    Raises:
        UsageError: not even the smallest width is.
    """
    if count(widths[0]) > budget:
        raise UsageError(
            f"head '{head}' has {count(widths[0]):,} parameters at the least, more than a budget of {budget:,}",
            where=f"head '{head}'",
            remedy="raise `budget`, or give it fewer taps or backbones",
        )
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(widths[middle]) <= budget else (low, middle - 1)
    return widths[low]
