"""FeatUp's published upsamplers: four learned stages of x2 and a last 1 x 1 convolution, frozen.

In:  the tensors of a file that FeatUp's training left, by their names.   Out: the state of a `FeatupHead`. Called by
`featup`, and by `training.upsampler`, which reads the file.
FeatUp (Fu, Hamilton et al., ICLR 2024, arXiv 2403.10516); names and shapes are those of `JBUStack` in its code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loffta.errors import UsageError
from loffta.heads.bilateral import N_PLACES
from loffta.words import brief, first_of

N_STAGES, RANGE_DIM = 4, 32  # of all that are published
_SHARE = 0.1  # of the last convolution
_ANY_STAGE = "up1.range_temp"
_NORM = "model.1.norm"  # beside `upsampler`, of backbones that FeatUp put a LayerNorm behind
_ANYUP = ("image_encoder.", "cross_decode.")  # of github.com/wimmerth/anyup, anyup/model.py

# FeatUp's name of a weight of a stage -> ours and its shape there
_OF_STAGE: dict[str, tuple[str, tuple[int, ...]]] = {
    "range_temp": ("log_temperature", ()),
    "sigma_spatial": ("sigma", ()),
    "range_proj.0.weight": ("compare.0.weight", (RANGE_DIM, 3, 1, 1)),
    "range_proj.0.bias": ("compare.0.bias", (RANGE_DIM,)),
    "range_proj.3.weight": ("compare.1.weight", (RANGE_DIM, RANGE_DIM, 1, 1)),
    "range_proj.3.bias": ("compare.1.bias", (RANGE_DIM,)),
    "fixup_proj.0.weight": ("correct.0.weight", (N_PLACES, 3 + N_PLACES, 1, 1)),
    "fixup_proj.0.bias": ("correct.0.bias", (N_PLACES,)),
    "fixup_proj.3.weight": ("correct.1.weight", (N_PLACES, N_PLACES, 1, 1)),
    "fixup_proj.3.bias": ("correct.1.bias", (N_PLACES,)),
}


class LastMixing(nn.Module):
    """What FeatUp does to all channels of a pixel together: a LayerNorm before its stages, a convolution behind them.

    The convolution is affine, so it goes into the affine map of the head and costs nothing per pixel. All is frozen.

    Args:
        dim: D, the channels of the backbone.
    """

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None  # [D], where the file has a LayerNorm
    norm_bias: Tensor | None

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim, dim))
        self.register_buffer("bias", torch.zeros(dim))
        self.register_buffer("norm_weight", None)
        self.register_buffer("norm_bias", None)

    def standardise(self, cells: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        """FeatUp's `ChannelNorm`, where the file has one."""
        if self.norm_weight is None:
            return cells
        return F.layer_norm(cells, cells.shape[-1:], self.norm_weight, self.norm_bias)

    def fold(
        self, weight: Float[Tensor, "C D"], bias: Float[Tensor, " C"]
    ) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """An affine map of mixed channels as one of channels before they are mixed: x + (F x + f) / 10 goes first."""
        return weight + _SHARE * weight @ self.weight, bias + _SHARE * weight @ self.bias

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Makes room for a LayerNorm: whether there is one, its file alone said."""
        for name in ("norm_weight", "norm_bias"):
            self.register_buffer(name, torch.zeros_like(self.bias) if prefix + name in state_dict else None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def freeze(module: nn.Module) -> None:
    """Makes buffers of all parameters: they are saved under the same names, and no optimiser or count sees them."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())


def head_state(tensors: Mapping[str, Tensor], dim: int, *, where: str) -> dict[str, Tensor]:
    """The weights of a published upsampler, float32, by the names that they have in a `FeatupHead`.

    Its names may have anything before them, as "state_dict.upsampler."; what else is in the file is left alone.

    Args:
        tensors: all of the file.
        dim: channels of the features.
        where: the file, for errors.
    Raises:
        UsageError: the file has no such weights, two sets of them, other shapes, or values that are no numbers.
    """
    prefix = _find_prefix(tensors, where)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{prefix}up{i + 1}.{theirs}": (f"stages.{i}.{ours}", shape)
        for i in range(N_STAGES)
        for theirs, (ours, shape) in _OF_STAGE.items()
    }
    wanted |= {
        f"{prefix}fixup_proj.1.weight": ("mixing.weight", (dim, dim, 1, 1)),
        f"{prefix}fixup_proj.1.bias": ("mixing.bias", (dim,)),
    }
    norm = prefix.removesuffix("upsampler.") + _NORM
    if f"{norm}.weight" in tensors:
        wanted |= {f"{norm}.{name}": (f"mixing.norm_{name}", (dim,)) for name in ("weight", "bias")}
    if missing := [brief(name) for name in wanted if name not in tensors]:
        raise _no_stack(f"these weights are no whole FeatUp upsampler: there is no {first_of(missing)}", where)
    _check_width(tensors[f"{prefix}fixup_proj.1.weight"], dim, where)
    return {ours: _plain(tensors[name], brief(name), shape, ours, where) for name, (ours, shape) in wanted.items()}


def _check_width(mixing: Tensor, dim: int, where: str) -> None:
    """The last convolution alone says of how many channels the features were."""
    width = mixing.shape[0] if mixing.ndim else dim
    if width != dim:
        raise UsageError(
            f"this upsampler is for features of {width} channels, and these have {dim}",
            where=where,
            remedy="give it the backbone that it was trained on, or leave `upsampler` out: stages learn with the head",
        )


def _plain(found: Tensor, name: str, shape: tuple[int, ...], ours: str, where: str) -> Tensor:
    """A weight as a head keeps it: their numbers are vectors of one here, and the last convolution is a matrix."""
    if tuple(found.shape) != shape:
        raise _no_stack(f"{name} has shape {tuple(found.shape)}, not {shape} as FeatUp's", where)
    if not found.is_floating_point() or found.layout != torch.strided or found.is_meta:
        raise _no_stack(f"{name} is no plain tensor of numbers, but {found.dtype}", where)
    values = found.detach().float()
    if not values.isfinite().all():
        raise _no_stack(f"{name} has values that are no finite numbers", where)
    return values.reshape(shape[:2] if ours == "mixing.weight" else shape or (1,)).clone()


def _find_prefix(tensors: Mapping[str, Tensor], where: str) -> str:
    """What all names of the upsampler begin with."""
    found = [name.removesuffix(_ANY_STAGE) for name in tensors if f".{name}".endswith(f".{_ANY_STAGE}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise _no_stack(
            f"there are {len(found)} upsamplers in this file: {first_of([brief(name) for name in found])}", where
        )
    if all(any(part in name for name in tensors) for part in _ANYUP):
        raise UsageError(
            "these are AnyUp's weights, which are not read: pixels attend to cells there, by keys from the features, "
            "and it has no stages of x2",
            where=where,
            remedy="give the file of one of FeatUp's JBU upsamplers, or leave `upsampler` out",
        )
    names = [brief(name) for name in tensors]
    raise _no_stack(f"there is no '{_ANY_STAGE}' among its {len(tensors)} weights: {first_of(names)}", where)


def _no_stack(what: str, where: str) -> UsageError:
    remedy = "give the file of one of FeatUp's JBU upsamplers: NET_jbu_stack_cocostuff.ckpt"
    return UsageError(what, where=where, remedy=remedy)
