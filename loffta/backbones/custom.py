"""Takes any network as a backbone: `--backbone custom:MODULE:FUNCTION` calls the user's function.

In: the name of a function, and what it is to be given.   Out: a checked `Backbone`. `wrap_module` makes one of any
nn.Module, for such functions to return. Called by `load`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from loffta.backbones import Backbone, TapTokens, WeightsSource
from loffta.backbones.weights import digest_state_dict, stamp
from loffta.errors import LofftaError, UsageError
from loffta.images.geometry import Interpolation, PixelGeometry
from loffta.shapes import Grid, Prefix
from loffta.taps import SETS
from loffta.tokens import Kind, TokenSpec

CUSTOM = "custom:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOLERANCE = 1e-3  # of an image alone against the same image in a batch, relative to the largest token
ATTRIBUTES: dict[str, type] = {
    "name": str,
    "weights": WeightsSource,
    "geometry": PixelGeometry,
    "mean": tuple,
    "std": tuple,
    "specs": tuple,
}

# normalised images [B, 3, S, S] -> per tap, in depth order, its grid, or grid and prefix
ForwardTokens: TypeAlias = Callable[[Tensor], Mapping[str, Grid | tuple[Grid, Prefix]]]


def wrap_module(
    model: nn.Module,
    forward_tokens: ForwardTokens,
    *,
    image_px: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    interpolation: Interpolation = "bicubic",
    device: str | torch.device = "cpu",
    registers_only: bool = False,
) -> Backbone:
    """A backbone of any module, frozen and in eval mode; its taps are found by running it once.

    Args:
        forward_tokens: runs `model` on images [B, 3, S, S], float32, normalised by `mean` and `std`, on `device`; gives
            every tap in depth order: its grid [B, H, W, D], or (grid, prefix [B, P, D]).
        image_px: S.
        registers_only: the prefixes have no class token.
    """
    geometry = PixelGeometry(image_px, interpolation=interpolation)
    return _ModuleBackbone(model, forward_tokens, geometry, mean, std, device, registers_only)


class _ModuleBackbone:
    """What `wrap_module` makes."""

    def __init__(
        self,
        model: nn.Module,
        forward_tokens: ForwardTokens,
        geometry: PixelGeometry,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: str | torch.device,
        registers_only: bool,
    ) -> None:
        self.name = type(model).__name__
        self.weights = WeightsSource("", digest_state_dict(model.state_dict()))
        self.geometry, self.mean, self.std = geometry, mean, std
        self._model = model.eval().requires_grad_(False).to(device)
        self._forward, self._device = forward_tokens, torch.device(device)
        image = torch.zeros(1, 3, geometry.image_px, geometry.image_px, dtype=torch.uint8)
        self.specs = tuple(_describe(tap, tokens, registers_only) for tap, tokens in self._run(image).items())

    def state_dict(self) -> dict[str, Tensor]:
        """The module's."""
        return self._model.state_dict()

    def __call__(self, pixels: UInt8[Tensor, "B 3 S S"], taps: Sequence[str]) -> Mapping[str, TapTokens]:
        """Runs all of the module and gives the taps asked for."""
        found = self._run(pixels)
        return {tap: found[tap] for tap in taps}

    def _run(self, pixels: UInt8[Tensor, "B 3 S S"]) -> dict[str, TapTokens]:
        mean, std = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (self.mean, self.std))
        with torch.no_grad():
            outputs = self._forward((pixels.to(self._device).float() / 255 - mean) / std)
        pairs = {tap: output if isinstance(output, tuple) else (output, None) for tap, output in outputs.items()}
        return {
            tap: TapTokens(grid, grid.new_zeros(len(grid), 0, grid.shape[-1]) if prefix is None else prefix)
            for tap, (grid, prefix) in pairs.items()
        }


def _describe(tap: str, tokens: TapTokens, registers_only: bool) -> TokenSpec:
    _, height, width, dim = tokens.grid.shape
    n_prefix = tokens.prefix.shape[1]
    return TokenSpec(tap, height, width, n_prefix, dim, registers_only and n_prefix > 0)


class CustomBackbone:
    """A user's backbone under the name of the function that made it, with weights that loffta has digested."""

    def __init__(self, name: str, backbone: Backbone, weights: WeightsSource) -> None:
        self.name = name
        self.weights = weights
        self.geometry = backbone.geometry
        self.mean, self.std = backbone.mean, backbone.std
        self.specs = backbone.specs
        self._backbone = backbone

    def __call__(self, pixels: UInt8[Tensor, "B 3 S S"], taps: Sequence[str]) -> Mapping[str, TapTokens]:
        """The user's own."""
        return self._backbone(pixels, taps)


def load_custom(name: str, *, weights: str, image_px: int | None, device: str | torch.device) -> Backbone:
    """Calls FUNCTION(weights, image_px, device) of `custom:MODULE:FUNCTION` and checks what it gives.

    MODULE is imported from wherever Python finds it, from the current folder last of all.

    Raises:
        UsageError: no such module or function.
        LofftaError: the function fails, or what it returns is no backbone; names the fault.
    """
    where = f"--backbone {name}"
    function = _find_function(name, where)
    try:
        backbone = function(weights, image_px, device)
    except LofftaError:
        raise
    except Exception as error:
        error.add_note(f"while {where} made its backbone from weights '{weights}'")
        raise
    _check_attributes(backbone, where)
    _check_tokens(backbone, where)
    has_state = callable(getattr(backbone, "state_dict", None))
    digest = digest_state_dict(backbone.state_dict()) if has_state else backbone.weights.digest
    return CustomBackbone(name, backbone, WeightsSource(weights, digest, *stamp(file_of(weights))))


def file_of(weights: str) -> Path | None:
    """The file that a custom function's weights are, if they are one."""
    path = Path(weights).expanduser().absolute()
    return path if path.is_file() else None


def _find_function(name: str, where: str) -> Callable[..., Any]:
    module, _, function = name.removeprefix(CUSTOM).partition(":")
    if not module or not function.isidentifier():
        raise UsageError(
            "this names no function", where=where, remedy="write custom:MODULE:FUNCTION, for example custom:nets:resnet"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file here must not hide an installed package
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, but one that it imports is not: a fault of its own, with its traceback
        remedy = "run in the folder that holds it, or add that folder to PYTHONPATH"
        raise UsageError(f"there is no module '{error.name}'", where=where, remedy=remedy) from error
    if not callable(found):
        raise UsageError(f"module '{module}' has no function '{function}'", where=where, remedy="check its spelling")
    return found  # type: ignore[no-any-return]


def _fault(what: str, where: str) -> LofftaError:
    return LofftaError(
        f"the function returned no usable backbone: {what}",
        where=where,
        remedy="see the protocol Backbone in loffta.backbones, or return loffta.backbones.custom.wrap_module(...)",
    )


def _check_attributes(backbone: Any, where: str) -> None:
    """Raises a LofftaError for the first attribute that is missing or of another kind."""
    for attribute, kind in ATTRIBUTES.items():
        if not hasattr(backbone, attribute):
            raise _fault(f"a {type(backbone).__name__} without '{attribute}'", where)
        value = getattr(backbone, attribute)
        if not isinstance(value, kind):
            raise _fault(f"'{attribute}' is a {type(value).__name__}, not a {kind.__name__}", where)
    if not isinstance(backbone, Backbone):
        raise _fault(f"a {type(backbone).__name__} cannot be called", where)
    for attribute in ("mean", "std"):
        values = getattr(backbone, attribute)
        if len(values) != 3 or not all(isinstance(v, float) for v in values):
            raise _fault(f"'{attribute}' is {values}, not three floats", where)
    names = [getattr(spec, "tap", None) for spec in backbone.specs]
    if not names or not all(isinstance(spec, TokenSpec) for spec in backbone.specs):
        raise _fault("'specs' is no tuple of at least one TokenSpec", where)
    if len(set(names)) != len(names):
        raise _fault(f"two taps have one name: {', '.join(map(str, names))}", where)
    for name in names:
        if not isinstance(name, str) or not name or name in SETS or set(name) & set(", \t\n"):
            raise _fault(f"'{name}' cannot name a tap (a set of taps has that name, or it has spaces or commas)", where)


def _check_tokens(backbone: Backbone, where: str) -> None:
    """Runs two images of noise, together and one alone; raises a LofftaError for the first fault of the tokens."""
    px = backbone.geometry.image_px
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8, generator=generator)
    taps = [spec.tap for spec in backbone.specs]
    together, alone = backbone(pixels, taps), backbone(pixels[1:], taps)
    for spec in backbone.specs:
        if spec.tap not in together or not isinstance(together[spec.tap], TapTokens):
            raise _fault(f"it gives no TapTokens for its tap {spec.tap}", where)
        kinds: tuple[Kind, ...] = ("grid", "prefix")
        for kind in kinds:
            got, single = getattr(together[spec.tap], kind), getattr(alone[spec.tap], kind)
            _check_tensor(f"{kind} of {spec.tap}", got, single, (2, *spec.shape(kind)), where)


def _check_tensor(what: str, got: Any, single: Any, wanted: tuple[int, ...], where: str) -> None:
    if not isinstance(got, Tensor) or tuple(got.shape) != wanted:
        shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise _fault(f"{what} is {shape} for two images, its spec says {list(wanted)}", where)
    if got.dtype != torch.float32:
        raise _fault(f"{what} is {got.dtype}, not torch.float32", where)
    if got.requires_grad:
        raise _fault(f"{what} carries a gradient; run the network under torch.no_grad()", where)
    if not got.isfinite().all():
        raise _fault(f"{what} is not finite", where)
    if got.numel() and not _close(got[1:], single):
        raise _fault(f"{what} depends on the other images of the batch, or on chance: is it in eval mode?", where)


def _close(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * (float(a.abs().max()) + TOLERANCE)
