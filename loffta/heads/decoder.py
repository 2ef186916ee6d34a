"""DeAP's small decoder: three times twice the size, and a linear skip connection.

In:  maps [B, D, h, w].   Out: maps [B, C, 8 h, 8 w]. Called by `deap`, `combo-deap`, `bicubic` and `deconv`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loffta.heads.convolution import make_conv, make_transposed

SCALE = 8  # output pixels per query, along either axis


def decoder_width(dim: int, n_outputs: int) -> int:
    """The release's width, max(D // 4, C // 2), at least 1; the paper's prose has C in place of C // 2."""
    return max(dim // 4, n_outputs // 2, 1)


class Decoder(nn.Module):
    """Three blocks of a 3x3 convolution, ReLU, a transposed 2x2 convolution, ReLU; then 1x1 to the outputs.

    The skip connection is a 1x1 convolution, too, and is enlarged bilinearly behind it. The release enlarges first: the
    same function, for the weights of an interpolation add up to 1, and more work.

    Args:
        bias: added to the biases of both 1x1 convolutions.
    """

    def __init__(self, dim: int, n_outputs: int, *, width: int, bias: float | int, rng: torch.Generator) -> None:
        super().__init__()
        self.convolve = nn.ModuleList(make_conv(dim if i == 0 else width, width, 3, rng) for i in range(3))
        self.enlarge = nn.ModuleList(make_transposed(width, width, 2, rng) for _ in range(3))
        self.final = make_conv(width, n_outputs, 1, rng)
        self.skip = make_conv(dim, n_outputs, 1, rng)
        for layer in (self.final, self.skip):
            assert layer.bias is not None
            layer.bias.data += bias

    def forward(self, maps: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Eight times the size along either axis."""
        skipped = F.interpolate(self.skip(maps), scale_factor=SCALE, mode="bilinear", align_corners=False)
        for convolve, enlarge in zip(self.convolve, self.enlarge, strict=True):
            maps = F.relu(enlarge(F.relu(convolve(maps))))
        decoded: Tensor = self.final(maps) + skipped
        return decoded
