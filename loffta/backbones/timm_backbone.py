"""Turns a frozen timm model into a function from images to multi-layer tokens.

In: a model's name, the source of its weights, a side in pixels.   Out: a `Backbone` for `extract` and `online`.
Nothing here trains, reads images or knows about labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loffta.backbones import TapTokens, WeightsSource
from loffta.backbones.inner_taps import PARTS, BlockProof, final_widths, hooked_module, read_tap, watch
from loffta.backbones.module_taps import ModuleTap, find_module_tap
from loffta.backbones.timm_model import build_model
from loffta.errors import UsageError
from loffta.images.geometry import Interpolation, PixelGeometry
from loffta.machine.progress import say
from loffta.shapes import Grid, Prefix
from loffta.taps import MODULE, is_inner, module_paths, unknown_tap
from loffta.tokens import TokenSpec
from loffta.zoo.names import check_name


def load_timm(
    name: str,
    *,
    weights: str = "hub",
    image_px: int | None = None,
    taps: str = "",
    device: str | torch.device = "cpu",
) -> TimmBackbone:
    """Builds a model at its weights' size, loads or seeds it, digests it, and only then resamples it to `image_px`.

    Args:
        name: a timm model, with or without a pretrained tag: `vit_base_patch14_reg4_dinov2.lvd142m`.
        weights: hub, random:SEED, package:MODULE, or the path of a file, with #PREFIX where it holds several networks;
            BASE+DIR, or DIR for hub+DIR, merges the adapter in the folder DIR.
        image_px: side of the square input, rounded down to a multiple of the patch; None for the weights' own.
        taps: as `--taps` has it; modules that it names as `module:PATH` become taps beside the others.
    Raises:
        UsageError: an unknown name, a size the model cannot take, a model without intermediate outputs, a module that
            is no tap.
        LofftaError: weights that cannot be had or do not fit.
    """
    check_name(name)
    model, source, loaded = build_model(name, weights)
    if not hasattr(model, "forward_intermediates"):
        remedy = "choose a ViT, EfficientNet, ConvNeXt or Swin; `loffta models` lists names"
        raise UsageError("timm gives no intermediate outputs of this model", where=f"backbone {name}", remedy=remedy)
    for note in loaded.notes:
        say(f"{name}: {note}")
    config: Any = model.pretrained_cfg
    trained_px = loaded.px
    height, width = (trained_px, trained_px) if trained_px else config["input_size"][-2:]
    native: int = height
    if trained_px and image_px is None:
        own = config["input_size"][-1]
        say(f"{name}: the weights were trained at {native} px, the model's own is {own} px")
    px = native if image_px is None else _resolve_side(name, model, image_px, native=native)
    model.eval().requires_grad_(False)
    if (px, px) == (height, width):
        specs = describe_taps(model, px)
    else:
        specs = _resample(model, px, native=native, where=f"backbone {name}, --image-px {px}")
    modules = _module_taps(model, px, module_paths(taps), specs, where=f"--taps, backbone {name}")
    interpolation: Interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    return TimmBackbone(
        name,
        model.requires_grad_(False).to(device),  # again: a resampled position embedding is a new parameter
        specs,
        modules,
        weights=source,
        geometry=PixelGeometry(
            px, interpolation=interpolation, crop_pct=config["crop_pct"], crop_mode=config["crop_mode"]
        ),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


class TimmBackbone:
    """A frozen timm model behind the `Backbone` protocol; `load_timm` makes it."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        specs: tuple[TokenSpec, ...],
        modules: Sequence[ModuleTap] = (),
        *,
        weights: WeightsSource,
        geometry: PixelGeometry,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.name = name
        self.model = model
        self.specs = _with_modules(specs, modules)
        self.weights = weights
        self.geometry = geometry
        self.mean = mean
        self.std = std
        self._device = next(model.parameters()).device
        self._mean = torch.tensor(mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(std, device=self._device).view(3, 1, 1)
        self._specs = {spec.tap: spec for spec in self.specs}
        self._modules = {module.spec.tap: module for module in modules}
        self._n_outputs = sum(not is_inner(tap) for tap in self._specs)
        self._grid = (specs[0].height, specs[0].width) if specs[0].tap.startswith("blocks.") else None

    def __call__(self, pixels: UInt8[Tensor, "B 3 S S"], taps: Sequence[str]) -> Mapping[str, TapTokens]:
        """Runs the model no deeper than the deepest of `taps`, under no_grad.

        Args:
            pixels: [B, 3, S, S], S the geometry's image_px, on any device.
        Returns:
            Per tap, in the order asked for, grid [B, H, W, D] and prefix [B, P, D], float32 on the model's device.
        Raises:
            UsageError: a tap that this model does not have.
        """
        with torch.no_grad():  # inference_mode would forbid the tensors to later autograd
            return self.run(pixels, taps)

    def run(self, pixels: UInt8[Tensor, "B 3 S S"], taps: Sequence[str]) -> Mapping[str, TapTokens]:
        """As a call, but gradients flow where the caller has them on: `train --online --unfrozen`."""
        assert pixels.shape[-1] == self.geometry.image_px, "the caller resizes to this backbone's geometry"
        for tap in taps:
            if tap not in self._specs:
                raise unknown_tap(tap, tuple(self._specs), where=f"backbone {self.name}")
        inner = [tap for tap in taps if is_inner(tap)]
        plain = {tap: self._depth(tap) for tap in taps if not is_inner(tap)}
        indices = sorted({*plain.values(), max(map(self._depth, taps))})  # the last: how deep hooks need it
        with watch({tap: self._hooked(tap) for tap in inner}) as calls:
            outputs = run_intermediates(self.model, self._normalise(pixels), indices, grid=self._grid)
        at = dict(zip(indices, outputs, strict=True))
        return {tap: at[plain[tap]] if tap in plain else self._read(tap, calls[tap].gave) for tap in taps}

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one image through all blocks or stages.

        Attention as plain products: torch's counter does not know the kernel that CPUs use for it.
        """
        from torch.utils.flop_counter import FlopCounterMode  # imports triton, where that is installed

        side = self.geometry.image_px
        image = torch.zeros(1, 3, side, side, device=self._device)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            run_intermediates(self.model, image, grid=self._grid)
        return int(counter.get_total_flops()) // 2

    def _depth(self, tap: str) -> int:
        """Index of the intermediate up to which the model must run."""
        if tap in self._modules:
            return self._modules[tap].depth
        return self._n_outputs - 1 if tap in ("norm", "head") else int(tap.split(".")[1])

    def _hooked(self, tap: str) -> nn.Module:
        if tap in self._modules:
            return self.model.get_submodule(tap.removeprefix(MODULE))
        return hooked_module(self.model, tap)

    def _read(self, tap: str, output: Tensor) -> TapTokens:
        if tap in self._modules:
            return self._modules[tap].read(output)
        spec = self._specs[tap]
        return read_tap(self.model, tap, output, spec.n_prefix, (spec.height, spec.width))

    def _normalise(self, pixels: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """To float32 on the device, after the copy: bytes are a quarter of the traffic."""
        return pixels.to(self._device).float().div_(255).sub_(self._mean).div_(self._std)


def run_intermediates(
    model: nn.Module,
    images: Float[Tensor, "B 3 S S"],
    indices: Sequence[int] | None = None,
    *,
    grid: tuple[int, int] | None = None,
) -> list[TapTokens]:
    """What timm's forward_intermediates gives, un-normed, as grids and prefixes.

    Args:
        images: normalised, [B, 3, S, S].
        indices: which entries, ascending; None for all. The model runs no deeper than the last.
        grid: (H, W) of an isotropic net. With it the tokens of a ViT are views of what the blocks gave; without it timm
            copies them to [B, D, H, W] (2-4 % of the time of a ViT-B on two cores).
    Returns:
        One per index: grid [B, H, W, D], prefix [B, P, D] with P = 0 for nets without prefix tokens.
    """
    forward: Any = model.forward_intermediates
    options: dict[str, Any] = {"indices": indices, "norm": False, "stop_early": True, "intermediates_only": True}
    if "return_prefix_tokens" in inspect.signature(forward).parameters:  # the ViTs, which all know NLC
        n_prefix = getattr(model, "num_prefix_tokens", 0)  # EVA's class fails when asked for prefix tokens it has not
        options |= {"return_prefix_tokens": n_prefix > 0, "output_fmt": "NLC" if grid else "NCHW"}
    outputs = forward(images, **options)  # NCHW is every family's default
    pairs = [output if isinstance(output, tuple) else (output, None) for output in outputs]
    return [_tap_tokens(features, prefix, grid) for features, prefix in pairs]


def _tap_tokens(features: Tensor, prefix: Prefix | None, size: tuple[int, int] | None) -> TapTokens:
    """From [B, D, H, W] or, with the `size` of the grid, [B, N, D]."""
    if features.ndim == 3 and size is not None:
        grid: Grid = features.reshape(len(features), *size, features.shape[-1])  # a view
    else:
        grid = features.permute(0, 2, 3, 1)
    return TapTokens(grid, grid.new_zeros(len(grid), 0, grid.shape[-1]) if prefix is None else prefix)


def describe_taps(model: nn.Module, px: int) -> tuple[TokenSpec, ...]:
    """Every tap of a model on the CPU, in depth order, from one image of noise of the real size.

    `blocks.N` where the net is isotropic, which is seen, not guessed: there is one intermediate per module of
    `model.blocks`, and each block gives exactly the prefix and grid tokens of its intermediate; then each block's inner
    taps come before it, `norm` and `head` last. Else `stages.N`, and no inner taps.
    """
    image = _noise(px)
    n_registers = count_registers(model)
    proof = BlockProof()
    with torch.no_grad():
        with proof.watch(model):
            outputs = run_intermediates(model, image)
        isotropic = proof.in_grid_order(outputs)
        final = final_widths(model, image, proof.outputs[-1]) if isotropic else {}

    def spec(tap: str, like: TapTokens, width: int) -> TokenSpec:
        n_prefix = like.prefix.shape[1]
        return TokenSpec(tap, like.grid.shape[1], like.grid.shape[2], n_prefix, width, 0 < n_prefix == n_registers)

    specs = []
    for i, out in enumerate(outputs):
        inner = proof.widths[i] if isotropic else {}
        specs += [spec(f"blocks.{i}.{part}", out, inner[part]) for part in PARTS if part in inner]
        specs.append(spec(f"{'blocks' if isotropic else 'stages'}.{i}", out, out.grid.shape[3]))
    return (*specs, *(spec(tap, outputs[-1], width) for tap, width in final.items()))


def count_registers(model: nn.Module) -> int:
    """`num_reg_tokens` of ViTs and NaFlex; EVA's class (EVA-02, DINOv3, PE) has only the parameter."""
    tokens: Any = getattr(model, "reg_token", None)
    return int(getattr(model, "num_reg_tokens", tokens.shape[1] if isinstance(tokens, Tensor) else 0))


def _noise(px: int) -> Float[Tensor, "1 3 S S"]:
    """One image in which no two patches are alike."""
    return torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))


def _module_taps(
    model: nn.Module, px: int, paths: Sequence[str], specs: Sequence[TokenSpec], *, where: str
) -> list[ModuleTap]:
    """The taps behind the paths that a user gave, of a model on the CPU."""

    def run(images: Float[Tensor, "B 3 S S"], depth: int) -> list[TapTokens]:
        with torch.no_grad():
            return run_intermediates(model, images, [depth])

    return [find_module_tap(model, path, specs, _noise(px), run, where=where) for path in paths]


def _with_modules(specs: tuple[TokenSpec, ...], modules: Sequence[ModuleTap]) -> tuple[TokenSpec, ...]:
    """All taps in depth order: a module's comes right before the block or stage in which it runs."""
    outputs = [spec.tap for spec in specs if not is_inner(spec.tap)]
    found = list(specs)
    for module in modules:
        found.insert([spec.tap for spec in found].index(outputs[module.depth]), module.spec)
    return tuple(found)


def _resolve_side(name: str, model: nn.Module, px: int, *, native: int) -> int:
    """`px`, rounded down to a multiple of the model's patch where it has one, and said so on stderr.

    LOFF-TA does the same with DINOv2's patch of 14 px: 256 -> 252, 512 -> 504 (arXiv 2410.02527).
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    step = int(patch if isinstance(patch, int) else patch[0])
    if px < step:
        what = f"{px} px is no side of an image" if px < 1 else f"{px} px is less than the model's patch of {step} px"
        nearest = f"use --image-px {native}, the native size" if px < 1 else f"use --image-px {step} (native: {native})"
        raise UsageError(what, where=f"backbone {name}, --image-px {px}", remedy=nearest)
    side = px // step * step
    if side != px:
        say(f"{name}: {px} px is not a multiple of the patch of {step} px: using {side} px")
    return side


def _resample(model: nn.Module, px: int, *, native: int, where: str) -> tuple[TokenSpec, ...]:
    """Sets a model to another input size (conv nets need no change) and runs it there.

    Returns:
        The taps at that size.
    Raises:
        UsageError: the model cannot take it.
    """
    try:
        set_input_size: Any = getattr(model, "set_input_size", None)
        if set_input_size:
            set_input_size(img_size=(px, px))
        return describe_taps(model, px)
    except (AssertionError, RuntimeError, ValueError) as error:
        what = f"the model cannot take {px} px: {error}"
        raise UsageError(what, where=where, remedy=f"use --image-px {native}, the native size") from error
