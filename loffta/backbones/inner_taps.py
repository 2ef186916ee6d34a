"""Finds and reads the taps inside a transformer's blocks and behind its last one, by forward hooks.

In: a timm model whose block outputs are known to be in grid order.   Out: which inner taps it has; their tensors.
Called by `timm_backbone`. Nothing says in which order the tokens of an inner tensor lie, so one image runs through the
model and its sums are checked: input + attention must be what norm2 was given, and that + MLP the block's output, bit
for bit. A tensor that such a sum contains has the order of the block's output, and becomes a tap; another does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loffta.backbones import TapTokens

PARTS = {"attn": "attn", "norm2": "norm2", "mlp.hidden": "mlp.act", "mlp": "mlp"}  # tap: module; as a block computes
PROJECTION_STEP = 128  # CLIP's projections are 384 to 1,280 wide; no class count is a multiple


@dataclass(frozen=True)
class Call:
    """What a module was given (its first argument) and what it gave."""

    given: Any
    gave: Any


@contextmanager
def watch(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """While open, each call of a module is noted under its name; the hooks go with the context, whatever happens."""
    calls: dict[str, Call] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, given: Any, gave: Any) -> None:
            calls[name] = Call(given[0] if given else None, gave)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class BlockProof:
    """Watches the blocks of a model during one forward pass of one image.

    Afterwards `outputs` holds what each block gave. `widths` holds, per block, the inner taps whose order is proven,
    and their channels. Inner tensors are dropped block by block: all at once they are 8 GB for SAM's largest at 1024
    px.
    """

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.widths: list[dict[str, int]] = []

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Hooks the blocks of `model`, if it has any, while open."""
        blocks: Any = getattr(model, "blocks", ())
        parts = {f"{i}.{name}": part for i, block in enumerate(blocks) for name, part in _parts(block).items()}
        with watch(parts) as calls:

            def prove(block: nn.Module, given: Any, gave: Any) -> None:
                mine = {name.partition(".")[2]: call for name, call in calls.items()}
                self.outputs.append(gave)
                self.widths.append(_proven(block, given[0], gave, mine) if isinstance(gave, Tensor) else {})
                calls.clear()

            hooks = [block.register_forward_hook(prove) for block in blocks]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def in_grid_order(self, intermediates: list[TapTokens]) -> bool:
        """Whether each block gave exactly the tokens of its intermediate: prefix first, then the grid, row by row."""
        return len(self.outputs) == len(intermediates) and all(
            same(output, torch.cat([tokens.prefix, tokens.grid.flatten(1, 2)], dim=1))
            for output, tokens in zip(self.outputs, intermediates, strict=True)
        )


def _parts(block: nn.Module) -> dict[str, nn.Module]:
    """The modules that the proof of one block needs, those that it has."""
    paths = (*PARTS.values(), "mlp.fc2")
    return {path: found for path in paths if (found := _find(block, path)) is not None}


def _find(module: nn.Module, path: str) -> nn.Module | None:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def _proven(block: nn.Module, before: Tensor, after: Tensor, calls: Mapping[str, Call]) -> dict[str, int]:
    """Inner taps of one block whose tokens lie as those of its input and output, with their channels.

    Equality is exact: the model adds the very same tensors. What a block does otherwise (norms after the sum, windows,
    a branch in parallel) is not recognised, and its taps do not exist.
    """
    widths: dict[str, int] = {}
    if "norm2" not in calls or "mlp" not in calls:
        return widths
    stream, normed = tokens_of(calls["norm2"].given), calls["norm2"].gave
    attn = tokens_of(calls["attn"].gave) if "attn" in calls else None
    if stream is None:
        return widths
    if attn is not None and _adds_up(before, _scaled(block, "1", attn), stream):
        widths["attn"] = attn.shape[-1]
    mlp = tokens_of(calls["mlp"].gave)
    if mlp is not None and same(calls["mlp"].given, normed) and _adds_up(stream, _scaled(block, "2", mlp), after):
        widths["norm2"] = normed.shape[-1]
        hidden = calls["mlp.act"].gave if "mlp.act" in calls else None  # a gated MLP multiplies it: fc2 takes another
        if "mlp.fc2" in calls and isinstance(hidden, Tensor) and same(calls["mlp.fc2"].given, hidden):
            widths["mlp.hidden"] = hidden.shape[-1]
        widths["mlp"] = mlp.shape[-1]
    return widths


def _scaled(block: nn.Module, branch: str, output: Tensor) -> Tensor:
    """A branch's output as it is added: through LayerScale `ls1` (ViT, SAM) or times `gamma_1` (EVA, BEiT)."""
    scale: Any = getattr(block, f"ls{branch}", None)
    gamma: Any = getattr(block, f"gamma_{branch}", None)
    if isinstance(scale, nn.Module):
        scaled: Tensor = scale(output)
        return scaled
    return gamma * output if isinstance(gamma, Tensor) else output


def tokens_of(output: Any) -> Tensor | None:
    """[B, N, D] from [B, N, D] or [B, H, W, D]; None for anything else."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return None
    return output.flatten(1, -2)


def same(a: Any, b: Any) -> bool:
    """Whether two tensors hold the same tokens, bit for bit."""
    a, b = tokens_of(a), tokens_of(b)
    return a is not None and b is not None and torch.equal(a, b)


def _adds_up(before: Any, branch: Tensor, after: Any) -> bool:
    start = tokens_of(before)
    return start is not None and start.shape == branch.shape and same(start + branch, after)


def final_widths(model: Any, image: Float[Tensor, "1 3 S S"], last: Tensor) -> dict[str, int]:
    """`norm` and `head` with their channels, where the model has them.

    `norm`: forward_features ends with `model.norm` over all tokens. Nets that pool first have only a norm of the pooled
    vector (timm's fc_norm) and no such tap. `head`: a linear layer as wide as CLIP's projections, and not a classifier,
    whose result for the class token is what the whole model gives.

    Args:
        image: normalised, [1, 3, S, S].
        last: what the last block gives for it.
    """
    norm, head = getattr(model, "norm", None), getattr(model, "head", None)
    if not isinstance(norm, nn.Module) or isinstance(norm, nn.Identity):
        return {}
    features, normed = model.forward_features(image), norm(last)
    if not isinstance(features, Tensor) or features.shape != normed.shape or not close(features, normed):
        return {}
    widths = {"norm": normed.shape[-1]}
    if isinstance(head, nn.Linear) and head.out_features % PROJECTION_STEP == 0:
        projected = model.forward_head(features)
        if projected.ndim == 2 and close(projected, head(normed)[:, 0]):
            widths["head"] = head.out_features
    return widths


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: another shape of the same product may differ in its last bits."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def hooked_module(model: Any, tap: str) -> nn.Module:
    """The module whose output leads to an inner tap; for `norm` and `head` the last block, as they follow it."""
    if tap in ("norm", "head"):
        module: nn.Module = model.blocks[-1]
        return module
    _, index, part = tap.split(".", 2)
    found = _find(model.blocks[int(index)], PARTS[part])
    assert found is not None, "describe_taps only names what is there"
    return found


def read_tap(model: Any, tap: str, output: Tensor, n_prefix: int, size: tuple[int, int]) -> TapTokens:
    """Tokens of an inner tap from what its module gave.

    Args:
        output: [B, P + N, D], or [B, H, W, D] of a net without prefix tokens.
        size: (H, W) of the grid.
    """
    if tap in ("norm", "head"):
        output = model.norm(output)
    if tap == "head":
        output = model.head(output)
    tokens = tokens_of(output)
    assert tokens is not None, "the proof has seen this output"
    grid = tokens[:, n_prefix:].reshape(len(tokens), *size, tokens.shape[-1])  # a view
    return TapTokens(grid, tokens[:, :n_prefix])
