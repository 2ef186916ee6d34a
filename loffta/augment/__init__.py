"""Augments cached features in place of images: flips, turns, crops, noise, mixing; dense targets follow.

In:  a batch of features and a generator.   Out: new features of the same shapes and dtypes. Called by `fit`, once per
member and step: `draw` makes Parameters, `apply` carries them out, `apply_targets` does the same to masks, depths and
boxes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from loffta.augment.config import PRESETS, AugmentConfig, from_preset, resolve, words
from loffta.augment.matrix import N_DRAWS, make_matrix
from loffta.augment.ops import FILLS, Fill, add_noise, bilinear, drop_tokens, find_sources, mix, move_grid, spread
from loffta.augment.targets import move_boxes, move_depth, move_mask
from loffta.shapes import Boxes
from loffta.shares import Share, SharedGenerator, of_share
from loffta.targets import TargetKind
from loffta.tokens import FeatureSpec

__all__ = [
    "PRESETS",
    "AugmentConfig",
    "Parameters",
    "apply",
    "apply_targets",
    "draw",
    "from_preset",
    "resolve",
    "words",
]

_OUTSIDE = {"mask": 255, "instances": 0}  # Pascal VOC's "ignore"; no instance


@dataclass(frozen=True)
class Parameters:
    """What happens to the images of one batch; None and 0: nothing of the kind. The defaults are the identity."""

    n_images: int
    matrix: Float[Tensor, "B 2 3"] | None = None  # from places of the moved image to places before (`ops`)
    fill: Fill = "zero"
    partner: Int64[Tensor, " B"] | None = None  # the image that each is mixed with
    weight: Float[Tensor, " B"] | None = None  # of the image itself; its partner has the rest
    noise_std: float = 0.0
    noise_seed: int = 0
    token_drop: float = 0.0
    drop_seed: int = 0
    share: Share | None = None  # which of the batch's images these are of, where others have the rest

    def of_share(self, share: Share) -> Parameters:
        """Those of the images that this process has; images that are mixed it would need all of."""
        if share.is_all:
            return self
        assert self.partner is None, "a partner may be with another process"
        matrix = None if self.matrix is None else self.matrix[share.first : share.first + share.n_images]
        return replace(self, n_images=share.n_images, matrix=matrix, share=share)

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it as plain tensors that safetensors can keep; `from_tensors` gives the very same back."""
        tensors = {
            "n_images": torch.tensor(self.n_images),
            "fill": torch.tensor(FILLS.index(self.fill)),
            "seeds": torch.tensor([self.noise_seed, self.drop_seed]),
            "rates": torch.tensor([self.noise_std, self.token_drop], dtype=torch.float64),
        }
        return tensors | self._drawn()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Parameters:
        """What `to_tensors` was called on; tensors stay on their devices."""
        noise_seed, drop_seed = tensors["seeds"].tolist()
        noise_std, token_drop = tensors["rates"].tolist()
        return cls(
            n_images=int(tensors["n_images"]),
            fill=FILLS[int(tensors["fill"])],
            noise_std=noise_std,
            noise_seed=noise_seed,
            token_drop=token_drop,
            drop_seed=drop_seed,
            **{name: tensors[name] for name in ("matrix", "partner", "weight") if name in tensors},  # type: ignore[arg-type]
        )

    def to(self, device: torch.device) -> Parameters:
        """The same on another device; noise differs between kinds of device all the same."""
        moved: dict[str, Any] = {name: _send(t, device) for name, t in self._drawn().items()}
        return replace(self, **moved)

    def _drawn(self) -> dict[str, Tensor]:
        """The tensors that there are."""
        optional = {"matrix": self.matrix, "partner": self.partner, "weight": self.weight}
        return {name: tensor for name, tensor in optional.items() if tensor is not None}


def draw(config: AugmentConfig, n_images: int, rng: torch.Generator, device: torch.device) -> Parameters:
    """Draws what happens to the images of one batch.

    All of it is drawn on the host, from a seed that `rng` gives: some hundred numbers, for which a GPU would start
    forty kernels. A range that is changed leaves the draws of all others as they were.

    Args:
        rng: a member's generator, on any device; it moves on. The global generators have no part.
        device: where the features are.
    """
    host = np.random.Generator(np.random.PCG64(_take_seed(rng)))
    noise_seed, drop_seed = host.integers(2**62, size=2).tolist()
    drawn = host.random((N_DRAWS, n_images))
    partner = host.permutation(n_images)
    parameters = Parameters(
        n_images,
        fill=config.fill,
        noise_std=config.noise_std,
        noise_seed=noise_seed,
        token_drop=config.token_drop,
        drop_seed=drop_seed,
    )
    if config.moves:
        parameters = replace(parameters, matrix=make_matrix(config, torch.from_numpy(drawn)))
    if config.mixup_alpha is not None:
        weight = host.beta(config.mixup_alpha, config.mixup_alpha, n_images)
        parameters = replace(parameters, partner=torch.from_numpy(partner), weight=torch.from_numpy(weight).float())
    return parameters.to(device)


@torch.no_grad()
def apply(features: Sequence[Tensor], specs: Sequence[FeatureSpec], parameters: Parameters) -> list[Tensor]:
    """Augments one batch: grids are moved, then all features mixed and disturbed, then tokens of the grids dropped.

    All grids of an image, of whatever size, tap and backbone, move by the same map and lose tokens at the same places.
    Thumbnails move and mix as grids do; they are neither disturbed nor dropped, for they say where things are. What has
    no place in the image (`prefix`, `mean`) takes part in mixing and noise alone. The features that come in are never
    written to; those that nothing happens to are handed back themselves.

    Args:
        features: one [B, L, *spec.shape] per spec, as a Feed gives them.

    Returns:
        The same shapes and dtypes; the computation is in float32.
    """
    device = features[0].device
    noise = SharedGenerator(device).of(parameters.noise_seed, parameters.share)
    kept = _draw_kept(specs, parameters, device)
    blends: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # one per size of grid
    augmented = []
    for feature, spec in zip(features, specs, strict=True):
        assert len(feature) == parameters.n_images, f"{len(feature)} images, parameters of {parameters.n_images}"
        tokens = feature.float() if spec.kind == "thumb" else feature
        if parameters.matrix is not None and spec.kind in ("grid", "thumb"):
            height, width = spec.shape[:2]
            if (height, width) not in blends:
                blends[height, width] = bilinear(find_sources(parameters.matrix, height, width, parameters.fill))
            tokens = move_grid(tokens, *blends[height, width])
        if parameters.partner is not None and parameters.weight is not None:
            tokens = mix(tokens, parameters.partner, parameters.weight)
        if parameters.noise_std and spec.kind != "thumb":
            own = spread(feature, 2, 3) if spec.kind == "grid" else spread(feature, 0)
            tokens = add_noise(tokens, own * parameters.noise_std, noise)
        if kept is not None and spec.kind == "grid":
            tokens = drop_tokens(tokens, kept)
        augmented.append((tokens.round() if spec.kind == "thumb" else tokens).to(feature.dtype))
    return augmented


@overload
def apply_targets(
    targets: Tensor, parameters: Parameters, kind: TargetKind, *, outside: int | None = None
) -> Tensor: ...
@overload
def apply_targets(targets: Boxes, parameters: Parameters, kind: TargetKind, *, outside: int | None = None) -> Boxes: ...
@torch.no_grad()
def apply_targets(
    targets: Tensor | Boxes, parameters: Parameters, kind: TargetKind, *, outside: int | None = None
) -> Tensor | Boxes:
    """Moves dense targets as `apply` moves the grids of the same images; they are neither mixed nor dropped.

    A loss on mixed features weighs the moved targets of both images by `Parameters.weight`.

    Args:
        targets: [B, H, W] of any resolution, covering the same square as the features; for `boxes`, Boxes.
        outside: the value of masks and instances beside the image; None: 255 for masks, 0 for instances.
    """
    if parameters.matrix is None:
        return targets
    if isinstance(targets, Boxes):
        assert kind == "boxes", f"boxes as {kind}"
        return move_boxes(targets, parameters.matrix)
    assert kind != "boxes", "boxes come as Boxes"
    if kind == "depth":
        return move_depth(targets, parameters.matrix, parameters.fill)
    value = _OUTSIDE[kind] if outside is None else outside
    return move_mask(targets, parameters.matrix, parameters.fill, outside=value)


def _take_seed(rng: torch.Generator) -> int:
    """A seed that follows from the generator's state, which moves on; a draw from it would wait for the device."""
    state = rng.get_state().numpy().tobytes()
    torch.rand(1, generator=rng, device=rng.device)
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")


def _draw_kept(specs: Sequence[FeatureSpec], parameters: Parameters, device: torch.device) -> Tensor | None:
    """Which tokens of the coarsest grid stay, [B, h, w]; a finer grid loses all that lies in such a token's cell.

    Drawn apart for each size, what one tap loses another would still show.
    """
    sizes = [spec.shape[:2] for spec in specs if spec.kind == "grid"]
    if not (parameters.token_drop and sizes):
        return None
    coarsest = (min(rows for rows, _ in sizes), min(columns for _, columns in sizes))
    host = SharedGenerator().of(parameters.drop_seed, parameters.share)
    drawn = of_share(lambda n: torch.rand(n, *coarsest, generator=host), parameters.n_images, host)
    return _send(drawn >= parameters.token_drop, device)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; only CUDA, which stages it first, need not be waited for: MPS may read what is gone by then."""
    return tensor.to(device, non_blocking=device.type == "cuda")
