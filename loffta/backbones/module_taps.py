"""Finds taps that the user names by a module's path, `module:blocks.3.attn.proj`, and proves the order of their tokens.

In: a timm model at its input size, and paths.   Out: which tap each path is, or an error that says why it is none.
Called by `timm_backbone`. Which proof there is depends on where the module lies:

* In a block of a transformer: step by step, from tensors whose order is known.
* Before its blocks: patches of the image are changed, and each token must change where its own patch did.
* In a convolutional net: regions of the image are changed, and each must change its own place in the map most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loffta.backbones import TapTokens
from loffta.backbones.inner_taps import PARTS, Call, close, same, tokens_of, watch
from loffta.errors import UsageError, unknown_name
from loffta.taps import MODULE, is_inner
from loffta.tokens import TokenSpec

WINDOWS = "a hook would see tokens in an order that is not proven to be the grid's (windows or units)"
REGIONS = 4  # a convolutional map is proven on up to 4 x 4 regions
Run: TypeAlias = Callable[[Tensor, int], list[TapTokens]]  # (images, depth): that output, a list of one


@dataclass(frozen=True)
class ModuleTap:
    """A module whose output is a tap."""

    spec: TokenSpec
    depth: int  # the output (block or stage) up to which the model must run
    channels_first: bool  # [B, D, H, W]; else [B, P + N, D] or [B, H, W, D]

    def read(self, output: Tensor) -> TapTokens:
        """Grid and prefix of what the module gave; views."""
        if self.channels_first:
            grid = output.permute(0, 2, 3, 1)
            return TapTokens(grid, grid.new_zeros(len(grid), 0, grid.shape[-1]))
        tokens = output.flatten(1, -2)
        grid = tokens[:, self.spec.n_prefix :].reshape(len(tokens), self.spec.height, self.spec.width, -1)
        return TapTokens(grid, tokens[:, : self.spec.n_prefix])


class _Unproven(Exception):
    """Why a module's output is no tap."""


def find_module_tap(
    model: Any, path: str, specs: Sequence[TokenSpec], image: Float[Tensor, "1 3 S S"], run: Run, *, where: str
) -> ModuleTap:
    """Looks for one module, runs it on one image, and proves the order of its tokens.

    Args:
        specs: the taps that the model has by name, in depth order.
        image: noise, of the model's size.
        run: runs `model` on images up to the output of a depth, without gradients.
    Raises:
        UsageError: no such module, or the reason why its output is no tap.
    """
    modules = dict(model.named_modules())
    if not path or path not in modules:
        raise unknown_name("module", path, [name for name in modules if name], where=where)
    outputs = [spec for spec in specs if not is_inner(spec.tap)]
    try:
        depth, call = _run_once(modules[path], len(outputs), lambda depth: run(image, depth))
        if not isinstance(call.gave, Tensor) or call.gave.ndim not in (3, 4) or len(call.gave) != 1:
            shape = list(call.gave.shape) if isinstance(call.gave, Tensor) else type(call.gave).__name__
            raise _Unproven(f"its output, {shape} for one image, is neither [B, N, D], [B, H, W, D] nor [B, D, H, W]")
        if outputs[0].tap.startswith("stages."):
            return _in_stages(model, path, depth, call.gave, image, run)
        if path.startswith("blocks."):
            return _in_block(model, path, depth, specs, lambda: run(image, depth))
        return _before_blocks(model, path, outputs[0], image, run)
    except _Unproven as reason:
        raise UsageError(
            f"'{MODULE}{path}' is no tap: {reason}",
            where=where,
            remedy="use the taps that the backbone has by name: last, last4, four-even, all, norm2, ...",
        ) from None


def _run_once(module: nn.Module, n_outputs: int, run: Callable[[int], object]) -> tuple[int, Call]:
    """The least depth at which a module runs, and what it was given and gave there."""

    def calls_at(depth: int) -> list[Call]:
        calls: list[Call] = []
        hook = module.register_forward_hook(lambda _m, given, gave: calls.append(Call(given, gave)))
        try:
            run(depth)
        finally:
            hook.remove()
        return calls

    depth = bisect_left(range(n_outputs), True, key=lambda depth: bool(calls_at(depth)))
    if depth == n_outputs:
        raise _Unproven("it does not run on the way to the last block or stage")
    calls = calls_at(depth)
    if len(calls) > 1:
        raise _Unproven(f"it runs {len(calls)} times for one image")
    return depth, calls[0]


def _in_block(model: Any, path: str, depth: int, specs: Sequence[TokenSpec], run: Callable[[], object]) -> ModuleTap:
    """Follows the modules of a block in the order they run, and collects tensors whose order is known.

    A module's output is known if it is such a tensor itself. It is known as well if the module was given one and works
    token by token: then permuted tokens give the permuted result.
    """
    _, index, inside = (*path.split(".", 2), "")[:3]
    block = model.blocks[int(index)]
    parts = {PARTS[part]: f"blocks.{index}.{part}" for part in PARTS}
    taps = {spec.tap for spec in specs}
    modules = dict(block.named_modules())
    with watch(modules) as calls:
        run()
    known = [tokens_of(calls[""].given), tokens_of(calls[""].gave)]
    known += [tokens_of(calls[name].gave) for name, tap in parts.items() if name in calls and tap in taps]
    proven: set[str] = set()
    for name, call in calls.items():
        if any(same(call.gave, tensor) for tensor in known) or (
            any(same(call.given, tensor) for tensor in known) and _keeps_order(modules[name], call)
        ):
            known.append(tokens_of(call.gave))
            proven.add(name)
    if inside not in proven:
        raise _Unproven("the order of its tokens is not proven to be the grid's")
    output = next(spec for spec in specs if spec.tap == f"blocks.{index}")
    spec = replace(output, tap=f"{MODULE}{path}", dim=calls[inside].gave.shape[-1])
    return ModuleTap(spec, depth, channels_first=False)


def _keeps_order(module: nn.Module, call: Call) -> bool:
    """Whether permuted tokens give the permuted result."""
    given, gave = call.given, call.gave
    if not isinstance(given, Tensor) or not isinstance(gave, Tensor) or given.shape[:-1] != gave.shape[:-1]:
        return False
    generator = torch.Generator().manual_seed(0)
    before, after = given, gave
    for axis in range(1, given.ndim - 1):
        order = torch.randperm(given.shape[axis], generator=generator)
        before, after = before.index_select(axis, order), after.index_select(axis, order)
    try:
        with torch.no_grad():
            return close(module(before), after)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError):
        return False  # it needs more than its first argument (attention with rotary positions)


def _before_blocks(model: Any, path: str, output: TokenSpec, image: Float[Tensor, "1 3 S S"], run: Run) -> ModuleTap:
    """Changes half of the patches, once per bit of a patch's number: a token must change just where its patch did."""
    height, width = output.height, output.width
    n, side = height * width, image.shape[-1] // height
    numbers = torch.arange(n)
    bits = torch.stack([(numbers >> bit) & 1 for bit in range(n.bit_length())]).bool()  # [bits, N]
    changed: Bool[Tensor, "bits 1 S S"] = (
        bits.view(-1, 1, height, width).repeat_interleave(side, 2).repeat_interleave(side, 3)
    )
    with watch({"module": model.get_submodule(path)}) as calls:
        run(torch.cat([image, torch.where(changed, image.flip(-1, -2) + 1, image)]), 0)
    gave: Tensor = calls["module"].gave
    channels_first = gave.ndim == 4 and tuple(gave.shape[2:]) == (height, width)
    tokens = gave.flatten(2).transpose(1, 2) if channels_first else gave.flatten(1, -2)
    n_prefix = tokens.shape[1] - n
    if n_prefix not in (0, output.n_prefix):
        raise _Unproven(f"it gives {tokens.shape[1]} tokens, the grid has {height} x {width}")
    differs = (tokens[1:] - tokens[:1]).abs().amax(-1) > 1e-4 * tokens.abs().max()  # [bits, P + N]
    if not torch.equal(differs[:, n_prefix:], bits) or differs[:, :n_prefix].any():
        raise _Unproven("its tokens do not belong to one patch each, in the order of the grid")
    registers_only = output.registers_only and n_prefix > 0
    spec = TokenSpec(f"{MODULE}{path}", height, width, n_prefix, tokens.shape[-1], registers_only)
    return ModuleTap(spec, 0, channels_first)


def _in_stages(model: Any, path: str, depth: int, gave: Tensor, image: Float[Tensor, "1 3 S S"], run: Run) -> ModuleTap:
    """A map is proven if it is a stage's output, or if each region of the image changes its own place in the map most.

    Regions prove nothing where there is attention: a few of them cannot tell windows from the grid.
    """
    layouts = [gave.ndim == 4 and gave.shape[2] == gave.shape[3], gave.ndim == 4 and gave.shape[1] == gave.shape[2]]
    possible = [first for first, square in zip((True, False), layouts, strict=True) if square]
    (stage,) = run(image, depth)
    proven = [first for first in possible if torch.equal(_channels_last(gave, first), stage.grid)]
    if not proven:
        if any("attn" in name or "attention" in type(m).__name__.lower() for name, m in model.named_modules()):
            raise _Unproven(WINDOWS)
        if not possible or gave.shape[2] == 1:
            raise _Unproven(f"its output, {list(gave.shape)} for one image, is no square map")
        regions = min(REGIONS, gave.shape[2])
        cells = torch.eye(regions**2, dtype=torch.bool).view(-1, 1, regions, regions)
        changed = nn.functional.interpolate(cells.float(), image.shape[-2:]).bool()  # [cells, 1, S, S]
        with watch({"module": model.get_submodule(path)}) as calls:
            run(torch.cat([image, torch.where(changed, image.flip(-1, -2) + 1, image)]), depth)
        maps: Tensor = calls["module"].gave
        proven = [first for first in possible if _answers_in_place(_channels_last(maps, first), regions)]
    if len(proven) != 1:
        raise _Unproven("changing a region of the image does not change its map most there")
    height, width, dim = _channels_last(gave, proven[0]).shape[1:]
    return ModuleTap(TokenSpec(f"{MODULE}{path}", height, width, 0, dim), depth, proven[0])


def _channels_last(maps: Tensor, channels_first: bool) -> Float[Tensor, "B H W D"]:
    return maps.permute(0, 2, 3, 1) if channels_first else maps


def _answers_in_place(maps: Float[Tensor, "B H W D"], regions: int) -> bool:
    """Whether each map but the first differs from the first most in its own one of regions x regions places."""
    change = (maps[1:] - maps[:1]).abs().sum(-1)
    by_region = nn.functional.adaptive_avg_pool2d(change[:, None], regions).flatten(1)
    return torch.equal(by_region.argmax(1), torch.arange(regions**2))
