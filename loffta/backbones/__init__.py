"""What stage one needs of a frozen network: images in, tokens per tap out.

Any object with these attributes is a backbone; nothing has to be inherited. `timm_backbone.py` makes them from timm,
`custom.py` from a user's function; `load.py` knows which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from loffta.images.geometry import PixelGeometry
from loffta.shapes import Grid, Prefix
from loffta.tokens import TokenSpec


@dataclass(frozen=True)
class TapTokens:
    """Tokens of one tap for a batch, float32, on the backbone's device."""

    grid: Grid  # [B, H, W, D]
    prefix: Prefix  # [B, P, D]; P may be 0


@dataclass(frozen=True)
class AdapterStamp:
    """What a later run looks at to see whether an adapter may have changed."""

    path: str  # its folder
    size: int  # bytes of its two files
    mtime_ns: int  # of the younger one


@dataclass(frozen=True)
class WeightsSource:
    """Where weights came from; together with `digest` in the recipe it tells whether they changed.

    `digest` is BLAKE2b-128 over the state dict before any resampling: the same whatever the source. With an adapter it
    is over the merged one.
    """

    spec: str  # as the user wrote it: hub, random:0, package:NAME, a path, or one of these and +ADAPTER
    digest: str  # 32 hex digits
    path: str | None = None  # the file read, None for random weights
    size: int | None = None  # its bytes
    mtime_ns: int | None = None
    adapter: AdapterStamp | None = None


@runtime_checkable
class Backbone(Protocol):
    """A frozen network that maps uint8 images to tokens of several taps."""

    name: str
    weights: WeightsSource
    geometry: PixelGeometry
    mean: tuple[float, float, float]  # per RGB channel, in 0-1 units
    std: tuple[float, float, float]
    specs: tuple[TokenSpec, ...]  # every tap it has, in depth order

    def __call__(self, pixels: UInt8[Tensor, "B 3 S S"], taps: Sequence[str]) -> Mapping[str, TapTokens]:
        """Runs the network no deeper than the deepest of `taps`, under no_grad."""
        ...
