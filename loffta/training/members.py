"""Members of a training: heads that train side by side on the same batches, each with all that is its own.

In: a head's name, a recipe and a seed.   Out: Members for `fit`, and their state as tensors for `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from loffta.heads import Head, build_dense_head, build_head
from loffta.heads.dense import DenseRecipe
from loffta.heads.recipe import Recipe
from loffta.shares import SharedGenerator
from loffta.tasks.dense import DENSE_TASKS
from loffta.tokens import FeatureSpec
from loffta.training.optim import is_finite, make_optimizer
from loffta.training.upsampler import take_upsampler

_OPTIMIZER = "optimizer/"


@dataclass
class Member:
    """One head in training; with a backbone that is trained along, the two of them as one."""

    seed: int
    recipe: Recipe
    head: Head
    optimizer: torch.optim.Optimizer
    rng: torch.Generator  # on the head's device: what its training draws
    parts: Mapping[str, Any]  # modules that are kept of it when it is trained, by the names of their files
    losses: list[float] = field(default_factory=list)  # of the steps of this epoch
    log: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch
    penalised: bool = True  # whether its loss has the head's penalty; of several ranks that train it, one's has
    diverged_at: int | None = None  # the step whose loss was not finite; it trains no more

    @property
    def setting(self) -> str:
        """What a search tells it apart by."""
        return f"lr {self.recipe.lr:g}, weight decay {self.recipe.weight_decay:g}"

    def start_phase(self, phase: int) -> None:
        """Lets the head begin its next training, with an optimiser of its own."""
        # a phase draws from a generator of its own, so that a resumed training need not keep its state
        self.head.start_phase(phase, torch.Generator().manual_seed(self.seed + (phase << 32)))
        self.head.to(self.rng.device).train()
        self.optimizer = make_optimizer(self.head, self.recipe, self.rng.device)

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        return is_finite(self.head)

    def n_bytes(self) -> int:
        """Bytes that it takes on the device: weights, gradients, two moments; what a step needs comes on top."""
        return 16 * sum(parameter.numel() for parameter in self.head.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how it goes on, but for `log`."""
        found = {f"head/{name}": tensor for name, tensor in self.head.state_dict().items()}
        found |= _optimizer_tensors(self.optimizer)
        found["rng"] = self.rng.get_state()
        found["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        return found

    def restore(self, tensors: Mapping[str, Tensor], phase: int) -> None:
        """Takes up what `tensors` gave, in a member that was built the same way.

        Raises:
            RuntimeError, KeyError or ValueError: the tensors are of another head.
        """
        for k in range(1, phase + 1):
            self.start_phase(k)  # brings the head into the form of this phase; its values follow
        self.head.load_state_dict(_below(tensors, "head/"))
        _restore_optimizer(self.optimizer, tensors)
        self.rng.set_state(tensors["rng"])
        self.losses = tensors["losses"].tolist()


def build_member(
    head: str, specs: Sequence[FeatureSpec], n_classes: int, recipe: Recipe, seed: int, device: torch.device
) -> Member:
    """A member before its first step; the seed decides its weights and all that its training draws."""
    return _as_member(build_head(head, specs, n_classes, recipe, seed), recipe, seed, device)


def build_dense_member(
    head: str,
    specs: Sequence[FeatureSpec],
    task: str,
    n_classes: int,
    recipe: Recipe,
    seed: int,
    device: torch.device,
) -> Member:
    """The same of a dense head, which gives what a task reads out."""
    assert isinstance(recipe, DenseRecipe), "dense tasks are for dense heads"
    readout = DENSE_TASKS[task].readout(n_classes, recipe.settings())
    built = build_dense_head(head, specs, readout, recipe, seed)
    take_upsampler(built, recipe)
    return _as_member(cast("Head", built), recipe, seed, device)


def _as_member(head: Head, recipe: Recipe, seed: int, device: torch.device) -> Member:
    built = head.to(device).train()
    rng = SharedGenerator(device).of(seed)
    return Member(seed, recipe, built, make_optimizer(built, recipe, device), rng, {"head": built})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimiser, by names that `_restore_optimizer` understands."""
    states = optimizer.state_dict()["state"].items()
    return {f"{_OPTIMIZER}{i}/{name}": value for i, state in states for name, value in state.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimiser of the same parameters its moments back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, _OPTIMIZER).items():
        i, _, key = name.partition("/")
        state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
