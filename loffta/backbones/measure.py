"""Finds what timm models take and give, without weights and without computing: on torch's `meta` device.

In: timm ids.   Out: `Facts`; as a program (`python -m loffta.backbones.measure`) it rewrites `loffta/zoo/facts.py`.
Called by `loffta models` for models outside the zoo. There are shapes here and no values: whether the blocks of a net
are uniform is judged by their shapes. When a model is loaded, its values decide (`describe_taps`).
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from loffta.backbones.inner_taps import watch
from loffta.backbones.timm_backbone import count_registers, run_intermediates
from loffta.zoo import names

HEADER = '''"""Shapes and terms of the zoo at native size, as `python -m loffta.backbones.measure` writes it.

A file, because building the models takes half a minute and `loffta models` should take none of it. Tests compare it
with timm.
"""

from __future__ import annotations

from loffta.zoo.names import Facts
'''


def measure(timm_id: str) -> names.Facts:
    """Builds a model on the `meta` device and sends one image of its native size through it.

    Raises:
        ValueError: timm gives no intermediate outputs of it, or it does not take squares of three channels.
        Exception: whatever a model raises that needs real values; none of the zoo does.
    """
    with torch.device("meta"):
        model = timm.create_model(timm_id).eval()
        config: Any = model.pretrained_cfg
        n_channels, height, width = config["input_size"]
        if n_channels != 3 or height != width:
            raise ValueError(f"it takes {n_channels} x {height} x {width}, not a square of three channels")
        if not hasattr(model, "forward_intermediates"):
            raise ValueError("timm gives no intermediate outputs of it")
        image = torch.empty(1, 3, height, width)
    blocks: Any = getattr(model, "blocks", ())
    with torch.no_grad(), watch({str(i): block for i, block in enumerate(blocks)}) as calls:
        outputs = run_intermediates(model, image)
    given = [call.gave.numel() for call in calls.values() if isinstance(call.gave, Tensor)]
    isotropic = given == [tokens.grid.numel() + tokens.prefix.numel() for tokens in outputs]
    n_prefix, n_registers = outputs[-1].prefix.shape[1], count_registers(model)
    return names.Facts(
        px=height,
        n_params=round(sum(parameter.numel() for parameter in model.parameters()) / 1e6),
        licence=config.get("license") or "",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        n_class=n_prefix - n_registers,
        n_registers=n_registers,
        kind="blocks" if isotropic else "stages",
        taps=tuple((tokens.grid.shape[1], tokens.grid.shape[3]) for tokens in outputs),
    )


def render(facts: dict[str, names.Facts]) -> str:
    """The text of `facts.py` for facts by short name, laid out as ruff formats it."""
    statistics = sorted({(item.mean, item.std) for item in facts.values()})
    names = {pair: f"_{letter}" for pair, letter in zip(statistics, string.ascii_uppercase, strict=False)}
    lines = [HEADER, *(f"{names[pair]} = {pair}  # mean, std" for pair in statistics)]
    lines += ["", "FACTS: dict[str, Facts] = {  # by short name"]
    for short, item in facts.items():
        uniform = len(set(item.taps)) == 1
        taps = f"({item.taps[0]},) * {len(item.taps)}" if uniform else str(item.taps)
        statistic = f'*{names[item.mean, item.std]}, "{item.interpolation}"'
        values = f'{item.px}, {item.n_params}, "{item.licence}", {statistic}'
        values += f', {item.n_class}, {item.n_registers}, "{item.kind}", {taps}'
        line = f'    "{short}": Facts({values}),'
        lines += [line] if len(line) <= 120 else [f'    "{short}": Facts(', f"        {values}", "    ),"]
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    Path(names.__file__).with_name("facts.py").write_text(
        render({short: measure(timm_id) for short, timm_id in names.ZOO.items()})
    )
