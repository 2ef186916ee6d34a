"""int8 features: how a channel's range becomes a scale and a zero point, and values become codes and come back.

A code q in -127..127 stands for `(q - zero) * scale`; -128 stands for a value that is not there, NaN. Scale and zero
point belong to one channel of one tap. The zero point is a whole number, so 0 has a code of its own and comes back as
0 exactly: dead channels and ReLU's zeros stay what they are. Subtracting whole numbers is exact and one product rounds
once, so every device and every library decodes the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from loffta.store.scales import CODES, MISSING_CODE, Scales

_PAD = 0.1  # of a channel's range, added at each end: unseen images reach further (docs/decisions.md has the figures)


class Codes(NamedTuple):
    """Tokens as int8."""

    values: Int8[Tensor, "B L ..."]
    saturated: Tensor  # [B, L] int64: values beyond the range, which are kept at its end


def fit_scales(low: Float[Tensor, "L D"], high: Float[Tensor, "L D"]) -> Scales:
    """Scales for channels whose sampled values lie between `low` and `high`.

    The range is widened by a tenth at each end, but not beyond a 0 that ends it (ReLU), and always holds 0. A channel
    that is 0 throughout takes the tap's median scale: should it wake up in another image, it has its neighbours' range.

    Args:
        low, high: finite, low <= high.
    """
    low, high = low.double(), high.double()  # a difference of two float32 can overflow
    pad = _PAD * (high - low)
    bottom = torch.where(low == 0, low, low - pad).clamp(max=0)
    top = torch.where(high == 0, high, high + pad).clamp(min=0)
    # a range of denormal numbers would have a scale of 0
    scale = ((top - bottom) / (2 * CODES)).clamp(torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)
    dead = (low == 0) & (high == 0)
    zero = torch.where(dead, torch.zeros_like(low), (-CODES - bottom / scale).round().clamp(-CODES, CODES))
    for tap in range(len(scale)):
        scale[tap, dead[tap]] = scale[tap, ~dead[tap]].median() if not dead[tap].all() else 1.0
    return Scales(scale.float().numpy(), zero.float().numpy())


def quantise(tokens: Float[Tensor, "B L ... D"], scales: Scales) -> Codes:
    """The nearest code of each value, on the device of `tokens`; NaN has none and gives an arbitrary one."""
    scale, zero = _on_device(scales, tokens)
    nearest = (tokens.float() / scale).add_(zero).round_()
    saturated = (nearest.abs() > CODES).flatten(2).sum(dim=2)
    return Codes(nearest.clamp_(-CODES, CODES).to(torch.int8), saturated)


def dequantise(codes: Int8[Tensor, "B L ... D"], scales: Scales) -> Float[Tensor, "B L ... D"]:
    """What the codes stand for, float32 on their device; NaN for MISSING_CODE."""
    scale, zero = _on_device(scales, codes)
    values = codes.float().sub_(zero).mul_(scale)
    return values.masked_fill_(codes == MISSING_CODE, torch.nan)


def _on_device(scales: Scales, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero on the device of `tokens` [B, L, ..., D], shaped to be broadcast over it."""
    shape = (tokens.shape[1], *[1] * (tokens.ndim - 3), tokens.shape[-1])
    key = (tokens.device, shape)
    if key not in scales.copies:  # a copy to the device for each batch would wait for the device
        scales.copies[key] = tuple(
            torch.from_numpy(part).to(tokens.device).reshape(shape) for part in (scales.scale, scales.zero)
        )
    scale, zero = scales.copies[key]
    return scale, zero
