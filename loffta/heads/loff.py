"""LOFF: a small vision transformer on the stored tokens of the last tap (Konuk et al., arXiv 2410.02527).

In:  patch tokens and class token of every chosen tap.   Out: class logits.
With augmented features it is LOFF-TA, with `pool` or a store extracted with --pool its "+ Pool". Published are the
projection, the LayerNorm behind it, the class token's part and DeiT-S as the size; all else is ours (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from loffta.heads.base import HeadBase
from loffta.heads.block import Block, check_width, make_linear
from loffta.heads.recipe import Recipe, check_features
from loffta.heads.sources import TapSource, pair_taps
from loffta.pooling import pool_grid
from loffta.shapes import Logits
from loffta.shares import of_share
from loffta.tokens import FeatureSpec, Kind

_NORM_EPS = 1e-6  # DeiT's, as timm's


class LoffRecipe(Recipe, frozen=True):
    """Ours, as none is published: AdamW 1e-4 with DeiT's weight decay, over ComBo's epochs, batch and schedule."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.05
    pool: Literal["2x2"] | None = None  # cells averaged into one; for stores that were extracted without --pool
    patch_drop: float = Field(0.0, ge=0, lt=1)  # share of the patch tokens that a training step leaves out
    width: PositiveInt = 384  # channels of the transformer; this and the next three: DeiT-S
    depth: PositiveInt = 12  # blocks
    n_heads: PositiveInt = 6
    mlp_ratio: PositiveInt = 4

    @model_validator(mode="after")
    def _width_divides(self) -> LoffRecipe:
        check_width(self.width, self.n_heads)
        return self

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens, and the class token where the net has one."""
        return ("grid", "prefix")

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `LoffHead`."""
        return self.model_dump(include={"pool", "patch_drop", "width", "depth", "n_heads", "mlp_ratio"})


class LoffHead(HeadBase):
    """Logits from the class token of a vision transformer on stored tokens.

    The tokens of several taps or backbones stand side by side, each tap with a projection and positions of its own; the
    class token is the mean of the projected ones and a learned offset, or this offset alone where no net has any.

    Args:
        specs: features of the kinds "grid" and "prefix"; registers are left out.
        pool: average windows of 2 x 2 cells first.
        patch_drop: share of the patch tokens left out, drawn anew for every image.
    """

    default_taps: ClassVar[str] = "last"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        pool: Literal["2x2"] | None = None,
        patch_drop: float = 0.0,
        width: int = 384,
        depth: int = 12,
        n_heads: int = 6,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.sources = pair_taps("loff", specs)
        self.patch_drop = patch_drop
        self._window = 1 if pool is None else 2
        self.embeddings = nn.ModuleList(
            _TapEmbedding(source.dim, self._n_cells(source), width, rng) for source in self.sources
        )
        self.cls_token = _make_embedding(1, width, rng)
        self.blocks = nn.Sequential(
            *(Block(width, n_heads, rng=rng, mlp_ratio=mlp_ratio, norm_eps=_NORM_EPS) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.classify = make_linear(width, n_classes, rng)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B T D"]:
        """All taps' tokens in one sequence: of each tap its class token, if any, and its cells, pooled or as they are.

        Args:
            features: per spec [B, L, H, W, D] or [B, L, P, D].

        Returns:
            float32; taps narrower than the widest are filled up with zeros, which their projections never see.
        """
        check_features("loff", self.specs, features)
        widest = max(source.dim for source in self.sources)
        parts = []
        for source in self.sources:
            cells = source.read_grid(features).float()
            if self._window > 1:
                cells = pool_grid(cells, self._window, self._window)
            found = [source.read_class_token(features).float()] if source.has_class_token else []
            parts += [F.pad(part, (0, widest - source.dim)) for part in (*found, cells.flatten(1, 2))]
        return torch.cat(parts, dim=1)

    def forward(self, prepared: Float[Tensor, "B T D"], rng: torch.Generator | None = None) -> Logits:
        """Takes what `prepare` gave; `rng` draws which tokens are left out."""
        class_token, patches = self._embed(prepared)
        if rng is not None and self.patch_drop > 0:
            n_patches = patches.shape[1]
            patches = _keep_random(patches, max(1, round((1 - self.patch_drop) * n_patches)), rng)
        tokens = self.blocks(torch.cat([class_token, patches], dim=1))
        logits: Tensor = self.classify(self.norm(tokens[:, 0]))
        return logits

    def _embed(self, prepared: Tensor) -> tuple[Float[Tensor, "B 1 M"], Float[Tensor, "B N M"]]:
        """The class token and all patch tokens; M is the transformer's width."""
        sizes = [int(source.has_class_token) + self._n_cells(source) for source in self.sources]
        parts = torch.split(prepared, sizes, dim=1)
        class_tokens, patches = [], []
        for source, embed, tokens in zip(self.sources, self.embeddings, parts, strict=True):
            embedded = embed(tokens[:, :, : source.dim])
            if source.has_class_token:
                class_tokens.append(embedded[:, :1])
                embedded = embedded[:, 1:]
            patches.append(embedded + embed.pos_embed)
        class_token = self.cls_token.expand(len(prepared), -1, -1)
        if class_tokens:
            class_token = class_token + torch.stack(class_tokens).mean(dim=0)
        return class_token, torch.cat(patches, dim=1)

    def _n_cells(self, source: TapSource) -> int:
        return -(-source.height // self._window) * -(-source.width // self._window)

    def no_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        names = {name for name, _ in self.named_parameters() if name.endswith("pos_embed")}
        return super().no_decay() | names | {"cls_token"}


class _TapEmbedding(nn.Module):
    """One tap's projection to the transformer's width, its LayerNorm, and the positions of its cells."""

    def __init__(self, dim: int, n_cells: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.project = make_linear(dim, width, rng)
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.pos_embed = _make_embedding(n_cells, width, rng)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N M"]:
        """Without the positions: the class token, which is among the tokens, has none."""
        embedded: Tensor = self.norm(self.project(tokens))
        return embedded


def _make_embedding(n_tokens: int, width: int, rng: torch.Generator) -> nn.Parameter:
    """DeiT's initialisation of class token and positions."""
    embedding = nn.Parameter(torch.empty(1, n_tokens, width))
    nn.init.trunc_normal_(embedding, std=0.02, generator=rng)
    return embedding


def _keep_random(tokens: Float[Tensor, "B N D"], n_kept: int, rng: torch.Generator) -> Float[Tensor, "B {n_kept} D"]:
    """`n_kept` tokens of each image, drawn without replacement; their order means nothing to a transformer."""
    n_images, n_tokens = tokens.shape[:2]
    drawn = of_share(lambda n: torch.rand(n, n_tokens, generator=rng, device=rng.device), n_images, rng)
    drawn = drawn.argsort(dim=1)[:, :n_kept]
    return tokens.gather(1, drawn.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
