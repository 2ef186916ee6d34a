"""Where one seed's training online stands between two epochs, as one safetensors file without pickle.

In: modules, optimiser, generator and the log so far.   Out: the same, exactly. Written whole and replaced at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from loffta.errors import LofftaError
from loffta.store.files import replace_file

FORMAT = 1
_META = "loffta"
_OPTIMIZER = "optimizer"
_RNG = "rng"


def save_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    facts: dict[str, Any],
) -> None:
    """Writes the state of a training.

    Args:
        modules: by a name without dots.
        facts: what JSON can hold: epochs done, the log.
    """
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}.{index}.{key}": value for key, value in state.items()}
    tensors[_RNG] = rng.get_state()
    held = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    replace_file(path, save(held, {_META: json.dumps({"format": FORMAT, **facts})}))


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, rng: torch.Generator
) -> dict[str, Any]:
    """Puts a saved state back into what was built the same way; returns the facts.

    Raises:
        LofftaError: the file is damaged, of a newer format, or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()[_META])
            if facts.pop("format") > FORMAT:
                raise ValueError("it is of a newer loffta")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, name))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, _OPTIMIZER).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        rng.set_state(tensors[_RNG])
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise LofftaError(
            f"the checkpoint cannot be continued ({error})",
            where=path,
            remedy="delete it and run the same command again: this seed starts anew",
        ) from error
    return facts


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
