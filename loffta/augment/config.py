"""What can be done to cached features in training, with which ranges, and the presets that `--augment` knows.

After LOFF-TA (Konuk et al., NeurIPS 2024, arXiv 2410.02527), whose ranges are not known: docs/methods.md says which are
ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from loffta.augment.ops import Fill
from loffta.errors import UsageError, unknown_name


class AugmentConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What is drawn for each image, uniformly within its range; the defaults change nothing.

    Geometry is carried out in this order, as one resampling: crop, shear, scale and flip, turn, shift, TrivialAugment.
    """

    hflip_p: float = Field(default=0.0, ge=0, le=1)  # left becomes right
    vflip_p: float = Field(default=0.0, ge=0, le=1)
    rotation_deg: float = Field(default=0.0, ge=0, le=180)  # either way, about the centre
    shear: float = Field(default=0.0, ge=0, le=2)  # either way, along each axis; sideways shift over distance
    translation: float = Field(default=0.0, ge=0, le=1)  # either way, along each axis; fraction of the side
    scale: tuple[float, float] = (1.0, 1.0)  # about the centre; above 1 enlarges
    crop_area: tuple[float, float] = (1.0, 1.0)  # of the image; a window anywhere in it that then fills the grid
    trivial: bool = False  # TrivialAugment: one more operation, of identity, shears, shifts and turn
    trivial_rotation_deg: float = Field(default=135.0, ge=0, le=180)
    trivial_shear: float = Field(default=0.99, ge=0, le=2)
    trivial_translation: float = Field(default=1 / 7, ge=0, le=1)
    fill: Fill = "zero"  # what is seen beside the image: zeros, its border drawn out, its mirror image
    noise_std: float = Field(default=0.0, ge=0)  # of the channel's own spread over grid or batch
    mixup_alpha: float | None = Field(default=None, gt=0)  # the image's weight is Beta(alpha, alpha)
    token_drop: float = Field(default=0.0, ge=0, lt=1)  # probability of a token of the grid to be zeroed

    @field_validator("scale", "crop_area")
    @classmethod
    def _is_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("it must be a range [low, high] with 0 < low <= high")
        return value

    @field_validator("crop_area")
    @classmethod
    def _is_part(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop cannot be larger than the image, 1")
        return value

    @property
    def moves(self) -> bool:
        """Whether there is any geometry."""
        ranges = (self.hflip_p, self.vflip_p, self.rotation_deg, self.shear, self.translation)
        return self.trivial or any(ranges) or {*self.scale, *self.crop_area} != {1.0}


PRESETS: dict[str, AugmentConfig] = {
    "none": AugmentConfig(),
    "loff-ta": AugmentConfig(
        hflip_p=0.5,
        vflip_p=0.5,
        rotation_deg=15,
        shear=0.1,
        translation=0.1,
        scale=(0.8, 1.2),
        trivial=True,
        noise_std=0.05,
    ),
    "trivial": AugmentConfig(trivial=True),
}


def resolve(value: str | Mapping[str, Any], *, where: str = "--augment") -> AugmentConfig:
    """From what a configuration says: a preset's name, or a mapping of settings and, if need be, a `preset`.

    Raises:
        UsageError: as `from_preset`.
    """
    if isinstance(value, str):
        return from_preset(value, {}, where=where)
    changes = dict(value)
    return from_preset(str(changes.pop("preset", "none")), changes, where=where)


def words(config: AugmentConfig) -> str | dict[str, Any]:
    """The same as a configuration file has it: "none", or all settings; `resolve` gives it back."""
    return "none" if config == AugmentConfig() else config.model_dump(mode="json")


def from_preset(name: str, changes: Mapping[str, Any], *, where: str = "--augment") -> AugmentConfig:
    """A preset with some of its settings changed.

    Raises:
        UsageError: unknown preset or key (near ones are named), or a value out of its range.
    """
    if name not in PRESETS:
        raise unknown_name("augmentation", name, PRESETS, where=where)
    for key in changes:
        if key not in AugmentConfig.model_fields:
            raise unknown_name("key", key, AugmentConfig.model_fields, where=f"{where} {name}: {key}")
    try:
        return AugmentConfig.model_validate({**PRESETS[name].model_dump(), **changes})
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(str(part) for part in problem["loc"])
        raise UsageError(
            f"{path}: {problem['msg'].lower()} (got {problem['input']!r})",
            where=f"{where} {name}",
            remedy="give a value that fits",
        ) from error
