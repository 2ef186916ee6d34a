"""ALF's attentive probe (arXiv 2601.09322): one learned query attends to an image's tokens, then a linear classifier.

In:  unit vectors [B, T, D], zero-padded to one width.   Out: class logits; attention weights where asked for.
Called by the heads `attentive` and `fusion`, which differ in their tokens and in the number of attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loffta.heads.block import draw_torch_weight, make_torch_linear
from loffta.heads.recipe import Recipe
from loffta.heads.vectors import JITTER_PROBABILITY, JITTER_STD, apply_batch_norm, jitter
from loffta.shapes import Logits
from loffta.shares import of_share

Attention: TypeAlias = Float[Tensor, "B heads T"]  # softmax over T
MIN_HEAD_WIDTH = 8  # ours; the paper's heads are 32 to 64 wide, and 2 * floor(D / heads) ends at 0


class ProbeRecipe(Recipe, frozen=True):
    """ALF's recipe. The paper searches lr and weight decay for every data set; the defaults here are ours.

    Weight decay reaches every parameter, and the code knows no autocast.
    """

    epochs: PositiveInt = 40
    batch_size: PositiveInt = 2048
    lr: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-3
    warmup_fraction: float = Field(0.0, ge=0, le=1)
    final_lr: NonNegativeFloat | None = 1e-6
    min_steps: PositiveInt | None = 1000
    min_batches: PositiveInt | None = 5
    max_grad_norm: PositiveFloat | None = 5.0
    class_weights: bool = True
    search_lr: tuple[PositiveFloat, ...] = Field((1e-1, 1e-2, 1e-3), min_length=1)
    search_weight_decay: tuple[NonNegativeFloat, ...] | None = Field(
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1
    )
    precision: Literal["fp32", "bf16"] | None = "fp32"
    attention_dropout: float = Field(0.0, ge=0, lt=1)  # the paper runs 0, 0.1 and 0.3 and keeps the best
    jitter_std: NonNegativeFloat = JITTER_STD  # of the noise on the unit vectors, in training
    jitter_probability: float = Field(JITTER_PROBABILITY, ge=0, le=1)  # that an image gets noise

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments that all heads with this probe have."""
        return self.model_dump(include={"n_heads", "attention_dropout", "jitter_std", "jitter_probability"})


class AttentiveProbe(nn.Module):
    """Logits from tokens: multi-head attention of one learned query, output map, BatchNorm, linear classifier.

    Keys and values are maps of the same tokens without a position code; there is no residual and no MLP. Instead of
    mapping every token to a key and a value, the query is folded into the key map and the value map comes after the
    weighted sum: the same function with 1/18 of the operations for 24 tokens of a ViT-B. Initial weights are those of
    the official code: the query normal with 0.02, all else as torch draws it.

    Args:
        widths: channels of each of the T tokens ahead of padding; D is the largest.
        n_heads: each 2 * floor(D / n_heads) wide, at least MIN_HEAD_WIDTH.
        rng: CPU generator that draws the initial weights.
        attention_dropout: probability that a weight is dropped, in training.
        jitter_std: of the noise on the tokens, padding included, in training.
        jitter_probability: that an image gets noise.
    """

    def __init__(
        self,
        widths: Sequence[int],
        n_classes: int,
        *,
        n_heads: int,
        rng: torch.Generator,
        attention_dropout: float | int = 0.0,
        jitter_std: float | int = JITTER_STD,
        jitter_probability: float | int = JITTER_PROBABILITY,
    ) -> None:
        super().__init__()
        dim = max(widths)
        self.head_width = max(MIN_HEAD_WIDTH, 2 * (dim // n_heads))
        self.attention_dropout = attention_dropout
        self.jitter_std = jitter_std
        self.jitter_probability = jitter_probability
        self.query = nn.Parameter(torch.empty(dim).normal_(std=0.02, generator=rng))
        self.norm_query, self.norm_key, self.norm_value = (nn.LayerNorm(dim, eps=1e-5) for _ in range(3))
        self.map_query, self.map_key, self.map_value = (_make_map(n_heads, self.head_width, dim, rng) for _ in range(3))
        self.output = make_torch_linear(n_heads * self.head_width, dim, rng)
        self.batch_norm = nn.BatchNorm1d(dim)
        self.classify = make_torch_linear(dim, n_classes, rng)

    def forward(self, tokens: Float[Tensor, "B T D"], rng: torch.Generator | None = None) -> Logits:
        """With `rng`, on the device of `tokens`, jitter and attention dropout are drawn from it; without, neither."""
        if rng is not None and self.jitter_std > 0:
            tokens = jitter(tokens, self.jitter_std, self.jitter_probability, rng)
        normed = self._standardise(tokens)
        weights = self._weigh(normed)
        if rng is not None and self.attention_dropout > 0:
            weights = drop(weights, self.attention_dropout, rng)
        pooled = self._pool(normed, weights).to(normed.dtype)  # statistics of bfloat16 would be coarse
        logits: Tensor = self.classify(apply_batch_norm(self.batch_norm, pooled))
        return logits

    def attention(self, tokens: Float[Tensor, "B T D"]) -> Attention:
        """Each head's weights over the tokens, without noise and dropout."""
        return self._weigh(self._standardise(tokens))

    def _standardise(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What both LayerNorms have in common; their weights and biases are folded into the maps behind them."""
        return F.layer_norm(tokens, tokens.shape[2:], eps=self.norm_key.eps)

    def _weigh(self, normed: Float[Tensor, "B T D"]) -> Attention:
        """Softmax of query . key / sqrt(head width), as tokens . (key map^T query): no key is computed."""
        query = torch.einsum("hed,d->he", self.map_query, self.norm_query(self.query))
        folded = torch.einsum("hed,he->hd", self.map_key, query) * self.head_width**-0.5
        scores = F.linear(normed, folded * self.norm_key.weight).to(normed.dtype)  # [B, T, heads]
        # the bias shifts all scores of a head alike: added in bfloat16, a large one would swamp their differences
        weights: Tensor = (scores + folded @ self.norm_key.bias).softmax(dim=1)
        return weights.transpose(1, 2)

    def _pool(self, normed: Float[Tensor, "B T D"], weights: Attention) -> Float[Tensor, "B D"]:
        """Output map of the weighted sums of values, as value map of the weighted sums of tokens."""
        sums = weights @ normed  # [B, heads, D]
        mass = weights.sum(dim=2, keepdim=True)  # not 1 under dropout: what the value norm's bias is multiplied by
        values = torch.einsum("bhd,hed->bhe", sums, self.map_value * self.norm_value.weight)
        values = values + mass * (self.map_value @ self.norm_value.bias)
        pooled: Tensor = self.output(values.flatten(1))
        return pooled


def drop(weights: Attention, probability: float | int, rng: torch.Generator) -> Attention:
    """Dropout: each weight is 0 with `probability`, the others are scaled so that the expectation stays."""
    n_images, *shape = weights.shape
    drawn = of_share(lambda n: torch.rand(n, *shape, generator=rng, device=weights.device), n_images, rng)
    kept = drawn >= probability
    return weights * kept / (1 - probability)


def average_attention(attention: Attention) -> Float[Tensor, " T"]:
    """Mean weight per token over images, then over heads, as in ALF's heat-maps; float64 on the CPU, sums to 1."""
    return (attention.detach().sum(dim=0).cpu().double() / len(attention)).mean(dim=0)


def _make_map(n_heads: int, head_width: int, dim: int, rng: torch.Generator) -> nn.Parameter:
    """The weights of a linear without bias, [heads, head width, D]."""
    weight = torch.empty(n_heads * head_width, dim)
    draw_torch_weight(weight, rng)
    return nn.Parameter(weight.view(n_heads, head_width, dim))
