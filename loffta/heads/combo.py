"""ComBo: all layers of all backbones, one affine map per position, a small transformer (arXiv 2512.01405).

In:  patch tokens of every tap (the residual stream, prefix tokens dropped).   Out: class logits.
Architecture, initialisation and recipe are the paper's for four ViT-B at 224 px; other grids and widths are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from loffta.heads.base import HeadBase
from loffta.heads.block import Block, check_width, make_linear, make_torch_linear
from loffta.heads.recipe import Recipe, check_features, check_specs
from loffta.heads.relevance import backbone_groups, penalty, tap_groups
from loffta.pooling import Resize, normalise_layers, normalise_tokens, resize_grid
from loffta.shapes import Logits
from loffta.tokens import FeatureSpec, Kind

Normalise: TypeAlias = Literal["embed_and_tokens", "embed_only"]  # the official code's names


class ComboRecipe(Recipe, frozen=True):
    """The paper's, the same for all its tasks: 1,300 steps on 800 images."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    relevance_weight: NonNegativeFloat = 0.0  # times `relevance.penalty`; the paper scores backbones with 0.01
    grid: PositiveInt | None = None  # cells per side; None: see `choose_grid`
    resize: Resize = "auto"  # paper: bilinear always; auto: area average where a grid shrinks by 2 or more, ours
    normalise: Normalise = "embed_and_tokens"  # embed_only: each token by itself; in the code, not in the paper
    width: PositiveInt = 128  # channels of the transformer
    depth: PositiveInt = 6  # blocks
    n_heads: PositiveInt = 2
    mlp_ratio: PositiveInt = 4

    @model_validator(mode="after")
    def _width_divides(self) -> ComboRecipe:
        check_width(self.width, self.n_heads)
        return self

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens alone."""
        return ("grid",)

    def resolve(self, specs: Sequence[FeatureSpec]) -> ComboRecipe:
        """Fills in the grid."""
        return self if self.grid is not None else self.model_copy(update={"grid": choose_grid(specs)})

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ComboHead`."""
        names = {"grid", "resize", "normalise", "width", "depth", "n_heads", "mlp_ratio", "relevance_weight"}
        return self.model_dump(include=names)


_PART_BYTES = 4 << 20  # that are prepared at a time on a CPU: stays in its caches, and takes no fresh pages


class ComboHead(HeadBase):
    """Logits from all taps on one common grid.

    Args:
        specs: features of kind "grid"; K is the sum of L * D over them.
        grid: cells per side of the common grid; None: see `choose_grid`.
        resize: see `resize_grid`.
        normalise: by one mean and standard deviation per image and tap, or per token.
        relevance_weight: of the group lasso over backbones.
    """

    default_taps: ClassVar[str] = "all"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        grid: int | None = None,
        resize: Resize = "auto",
        normalise: Normalise = "embed_and_tokens",
        width: int = 128,
        depth: int = 6,
        n_heads: int = 2,
        mlp_ratio: int = 4,
        relevance_weight: float | int = 0.0,
    ) -> None:
        super().__init__()
        check_specs("combo", ("grid",), specs)
        self.specs = tuple(specs)
        self.grid = choose_grid(specs) if grid is None else grid
        self.resize = resize
        self.normalise = normalise
        self.relevance_weight = relevance_weight
        self.backbone_groups = backbone_groups(specs)  # columns of `project.weight`
        self.tap_groups = tap_groups(specs)
        # as torch draws it, because the paper's projection is a timm patch embedding, which keeps that
        self.project = make_torch_linear(sum(len(spec.taps) * spec.dim for spec in specs), width, rng)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=1e-6, generator=rng))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=rng)
        self.blocks = nn.Sequential(*(Block(width, n_heads, rng=rng, mlp_ratio=mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.classify = make_linear(width, n_classes, rng)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B N K"]:
        """Brings all taps to one grid, normalises each, concatenates them per position; depends on no weights.

        Args:
            features: one [B, L, H, W, D] per spec.

        Returns:
            float32, N = grid * grid; columns in the order of specs, taps, channels.
        """
        check_features("combo", self.specs, features)
        normalise = normalise_layers if self.normalise == "embed_and_tokens" else normalise_tokens
        n_images, device = len(features[0]), features[0].device
        prepared = torch.empty(n_images, self.grid**2, self.project.in_features, device=device)
        first = 0
        for spec, feature in zip(self.specs, features, strict=True):
            n_together = n_images if device.type != "cpu" else max(1, _PART_BYTES // (4 * math.prod(spec.shape)))
            for tap in torch.split(feature, 1, dim=1):
                columns = slice(first, first + spec.dim)
                for start in range(0, n_images, n_together):
                    images = slice(start, start + n_together)
                    tokens = resize_grid(tap[images], self.grid, resize=self.resize).flatten(2, 3)
                    prepared[images, :, columns] = normalise(tokens)[:, 0]
                first += spec.dim
        return prepared

    def forward(self, prepared: Float[Tensor, "B N K"], rng: torch.Generator | None = None) -> Logits:  # noqa: ARG002
        """Takes what `prepare` gave."""
        tokens = self.project(prepared)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        logits: Tensor = self.classify(self.norm(self.blocks(tokens)[:, 0]))
        return logits

    def penalty(self) -> Tensor | None:
        """The group lasso over backbones, where it has a weight."""
        if self.relevance_weight == 0:
            return None
        return self.relevance_weight * penalty(self.project.weight, self.backbone_groups)

    def no_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        return super().no_decay() | {"cls_token", "pos_embed"}


def choose_grid(specs: Sequence[FeatureSpec]) -> int:
    """Cells per side of the common grid.

    One backbone keeps its taps' own, where they agree (DINOv2 its 16); several are brought to 14, whatever their own:
    the official code's configurations for one backbone and for several. Inputs of less than 112 px, and a backbone
    whose taps differ or are not square, are ours: min(14, image_px // 8) of the largest input, 8 at 64 px.
    """
    sides = {side for spec in specs for side in spec.shape[:2]}
    if len(sides) == 1 and len({spec.backbone for spec in specs}) == 1:
        return sides.pop()
    return max(1, min(14, max(spec.image_px for spec in specs) // 8))
