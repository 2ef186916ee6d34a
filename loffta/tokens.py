"""The axis alphabet, and what one tap's tokens are; the tensors themselves are typed in `shapes`.

B images   L taps (layers)   H W grid rows and columns   N tokens = H * W   P prefix tokens (class token, then
registers)   D channels.   K stands for the concatenation of the D of several taps, T for the tokens of several taps
and kinds side by side. Nothing here computes, nor imports torch: what lists a cache needs no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["grid", "prefix", "mean"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FedKind: TypeAlias = Kind | Literal["thumb"]  # what a head may be fed: beside features, the images' thumbnails


@dataclass(frozen=True)
class TokenSpec:
    """What one tap of one backbone gives for one image."""

    tap: str
    height: int  # grid rows
    width: int  # grid columns
    n_prefix: int  # class token and registers; 0 for convolutional nets
    dim: int  # channels
    registers_only: bool = False  # the prefix has no class token (NaFlex); stores do not mention it unless it is so

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Shape of one image's tensor of this tap: grid [H, W, D], prefix [P, D], mean [D]."""
        shapes: dict[Kind, tuple[int, ...]] = {
            "grid": (self.height, self.width, self.dim),
            "prefix": (self.n_prefix, self.dim),
            "mean": (self.dim,),
        }
        return shapes[kind]


@dataclass(frozen=True)
class FeatureSpec:
    """One tensor of a training batch: taps of one shape from one store, [B, L, *shape]."""

    backbone: str  # the label shown to users; random weights say so here
    taps: tuple[str, ...]  # L of them, in the order of axis L
    kind: FedKind
    shape: tuple[int, ...]  # grid (H, W, D), prefix (P, D), mean (D,), thumb (T, T, 3) of uint8 and one "tap"
    image_px: int  # side of the square input that the backbone saw
    registers_only: bool = False  # the backbone's prefix tokens, if any, are registers alone

    @property
    def dim(self) -> int:
        """Channels D of each tap."""
        return self.shape[-1]

    @property
    def has_class_token(self) -> bool:
        """Whether these are prefix tokens whose first, [:, :, 0], is a class token."""
        return self.kind == "prefix" and self.shape[0] > 0 and not self.registers_only
