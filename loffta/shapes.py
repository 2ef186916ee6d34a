"""The shaped tensors that signatures share, in the axis alphabet of `tokens`; C classes. Nothing here computes."""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

Grid: TypeAlias = Float[Tensor, "B H W D"]  # patch tokens of one tap, on their grid
Prefix: TypeAlias = Float[Tensor, "B P D"]  # class token first, if there is one, then registers
Tokens: TypeAlias = Float[Tensor, "B N D"]  # patch tokens in row-major order
Logits: TypeAlias = Float[Tensor, "B C"]
