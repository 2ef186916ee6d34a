"""Where one seed's training online stands between two epochs.

In: modules, optimiser, generator and the log so far.   Out: the same, exactly, from a file of `training.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loffta.errors import LofftaError
from loffta.training.checkpoint import read_checkpoint, write_checkpoint
from loffta.training.members import below, optimizer_tensors, restore_optimizer

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
        modules: by a name without slashes.
        facts: what JSON can hold: the log.
    """
    tensors: dict[str, Tensor] = {_RNG: rng.get_state()} | optimizer_tensors(optimizer)
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    write_checkpoint(path, tensors, facts)


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, rng: torch.Generator
) -> dict[str, Any] | None:
    """Puts a saved state back into what was built the same way.

    Returns:
        The facts; None where there is no file.
    Raises:
        LofftaError: the file is damaged, of a newer format, or of another training.
    """
    found = read_checkpoint(path)
    if found is None:
        return None
    tensors, facts = found
    try:
        for name, module in modules.items():
            module.load_state_dict(below(tensors, f"{name}/"))
        restore_optimizer(optimizer, tensors)
        rng.set_state(tensors[_RNG])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise LofftaError(
            f"the checkpoint cannot be continued ({str(error).splitlines()[0]})",
            where=path,
            remedy="delete it and run the same command again: this seed starts anew",
        ) from error
    return facts
