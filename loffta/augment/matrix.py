"""From uniform random numbers to one affine map per image.

In:  numbers between 0 and 1 and the ranges of an AugmentConfig.   Out: maps between places (`ops`). Nothing here draws.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from loffta.augment.config import AugmentConfig
from loffta.augment.ops import invert

_TRIVIAL_OPERATIONS = 6  # identity, shear along x and y, shift along x and y, turn
N_DRAWS = 13  # uniform numbers per image that `make_matrix` takes


def make_matrix(config: AugmentConfig, drawn: Float[Tensor, "13 B"]) -> Float[Tensor, "B 2 3"]:
    """All geometry as one map, from places of the moved image to places before; float32."""
    hflip, vflip, turn, shear_x, shear_y, shift_x, shift_y, scale, area, crop_x, crop_y, operation, strength = drawn
    low, high = config.scale
    zoom = low + (high - low) * scale
    mirror_x = torch.where(hflip < config.hflip_p, -1.0, 1.0)
    mirror_y = torch.where(vflip < config.vflip_p, -1.0, 1.0)
    matrix = _affine(
        turn_deg=config.rotation_deg * _signed(turn),
        shear=config.shear * _signed(torch.stack([shear_x, shear_y], dim=1)),
        scale=zoom[:, None] * torch.stack([mirror_x, mirror_y], dim=1),
        shift=2 * config.translation * _signed(torch.stack([shift_x, shift_y], dim=1)),
    )
    if config.trivial:
        matrix = _trivial(config, (operation * _TRIVIAL_OPERATIONS).long(), _signed(strength)) @ matrix
    side = (config.crop_area[0] + (config.crop_area[1] - config.crop_area[0]) * area).sqrt()
    window = torch.zeros_like(matrix)  # from places of the crop to places of the image
    window[:, 0, 0] = window[:, 1, 1] = side
    window[:, 0, 2], window[:, 1, 2] = (1 - side) * _signed(crop_x), (1 - side) * _signed(crop_y)
    window[:, 2, 2] = 1
    back = torch.cat([invert(matrix), matrix[:, 2:]], dim=1)
    return (window @ back)[:, :2].float()


def _trivial(
    config: AugmentConfig, operation: Int64[Tensor, " B"], strength: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 3"]:
    """One operation each, at a strength from -1 to 1 (Mueller and Hutter, ICCV 2021, without its colours)."""
    chosen = torch.nn.functional.one_hot(operation, _TRIVIAL_OPERATIONS) * strength[:, None]
    return _affine(
        turn_deg=config.trivial_rotation_deg * chosen[:, 5],
        shear=config.trivial_shear * chosen[:, 1:3],
        scale=torch.ones_like(chosen[:, :2]),
        shift=2 * config.trivial_translation * chosen[:, 3:5],
    )


def _affine(
    turn_deg: Float[Tensor, " B"], shear: Float[Tensor, "B 2"], scale: Float[Tensor, "B 2"], shift: Float[Tensor, "B 2"]
) -> Float[Tensor, "B 3 3"]:
    """Where places of the image go: sheared, scaled, turned about the centre, then shifted."""
    from kornia.geometry.transform import get_affine_matrix2d  # 0.15 s, which only who augments pays

    radians = shear.atan()  # kornia's unit; the tangent undoes it
    matrix: Tensor = get_affine_matrix2d(shift, torch.zeros_like(shift), scale, turn_deg, radians[:, 0], radians[:, 1])
    return matrix


def _signed(uniform: Tensor) -> Tensor:
    """From 0..1 to -1..1."""
    return 2 * uniform - 1
