"""From features to vectors: class tokens, means, patch tokens; what several heads take from the same kinds.

In: tensors of a batch as `features` orders them.   Out: vectors [B, n, D], in the order of specs, taps, positions, and
ALF's noise on them.
Registers are never taken: where they are the whole prefix (NaFlex), the backbone has no class token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loffta.errors import UsageError
from loffta.heads.batch_norm import SharedBatchNorm
from loffta.shares import of_share
from loffta.tokens import FeatureSpec

JITTER_STD, JITTER_PROBABILITY = 0.05, 0.5  # ALF's: of the noise on vectors of length 1; that an image gets it


def count_vectors(spec: FeatureSpec) -> int:
    """How many vectors a feature gives for one image."""
    if spec.kind == "prefix":
        return len(spec.taps) if spec.has_class_token else 0
    return len(spec.taps) * math.prod(spec.shape[:-1])


def take_vectors(spec: FeatureSpec, feature: Float[Tensor, "B L *shape"]) -> Float[Tensor, "B n D"]:
    """The class token of each tap, the mean of each tap, or every patch token of each tap; a view where it can be."""
    if spec.kind == "prefix":
        return feature[:, :, 0] if spec.has_class_token else feature[:, :0, 0]
    return feature.flatten(1, -2)


def check_vectors(head: str, specs: Sequence[FeatureSpec], *, remedy: str) -> None:
    """Refuses backbones that give no vector.

    Raises:
        UsageError: a backbone whose features are prefix tokens without a class token.
    """
    for spec in specs:
        if not any(count_vectors(other) for other in specs if other.backbone == spec.backbone):
            raise UsageError(
                f"{spec.backbone} has no class token: its prefix tokens are registers",
                where=f"head '{head}'",
                remedy=remedy,
            )


def unit_vectors(
    specs: Sequence[FeatureSpec], features: Sequence[Float[Tensor, "..."]], dim: int
) -> Float[Tensor, "B T {dim}"]:
    """All vectors of all features side by side, each of length 1, then zero-padded at the end to `dim` channels.

    Length 1 is over the channels of one vector; one that is all zeros stays so.

    Returns:
        float32, T in the order of specs, taps, positions.
    """
    found = []
    for spec, feature in zip(specs, features, strict=True):
        vectors = F.normalize(take_vectors(spec, feature).float(), dim=-1)
        found.append(F.pad(vectors, (0, dim - spec.dim)) if spec.dim < dim else vectors)
    return torch.cat(found, dim=1)


def unit_channels(
    specs: Sequence[FeatureSpec], features: Sequence[Float[Tensor, "..."]], dim: int
) -> Float[Tensor, "B T {dim}"]:
    """All vectors side by side, zero-padded, then every channel given length 1 over the T vectors.

    What ALF's feature loader does to all tokens of a layer (`F.normalize(features, dim=1)` of [N, T, D]).

    Returns:
        float32, T in the order of specs, taps, positions.
    """
    vectors = [take_vectors(spec, feature).float() for spec, feature in zip(specs, features, strict=True)]
    return F.normalize(torch.cat([F.pad(found, (0, dim - found.shape[2])) for found in vectors], dim=1), dim=1)


def jitter(
    vectors: Float[Tensor, "B *shape"], std: float | int, probability: float | int, rng: torch.Generator
) -> Float[Tensor, "B *shape"]:
    """Adds Gaussian noise to all of some images' values: one coin per image (ALF, arXiv 2601.09322).

    Args:
        probability: that an image gets noise.
        rng: on the device of `vectors`.
    """
    coins = of_share(lambda n: torch.rand(n, generator=rng, device=vectors.device), len(vectors), rng)

    def draw(n: int) -> Tensor:
        values = torch.empty_like(vectors) if n == len(vectors) else vectors.new_empty(n, *vectors.shape[1:])
        return values.normal_(std=std, generator=rng)

    noise = of_share(draw, len(vectors), rng)
    return noise.mul_(coins.view(-1, *[1] * (vectors.ndim - 1)) < probability).add_(vectors)


def apply_batch_norm(norm: nn.BatchNorm1d, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Batch normalisation that takes a single image in training, too: by the running statistics.

    One image left over for the last batch has no variance: BatchNorm would raise. Of a batch that several processes
    share, `norm` knows the others' images.
    """
    if norm.training and len(vectors) == 1 and not (isinstance(norm, SharedBatchNorm) and norm.is_shared):
        return F.batch_norm(vectors, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    normed: Tensor = norm(vectors)
    return normed
