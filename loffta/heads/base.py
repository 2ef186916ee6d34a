"""What most heads have in common: one phase, no penalty, no decay of vectors, nothing to tell."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loffta.heads.scale import Scale


class HeadBase(nn.Module):
    """The parts of the Head protocol that a head seldom has something to say about."""

    n_phases: ClassVar[int] = 1

    @property
    def scale(self) -> Scale | None:
        """What the outputs mean where they are numbers; None where they are logits."""
        found = self._modules.get("values")
        assert found is None or isinstance(found, Scale)
        return found

    def learn_values(self) -> None:
        """Makes the one output a number with a scale; called by `build_head`."""
        self.add_module("values", Scale())

    def penalty(self) -> Tensor | None:
        """Nothing is added to the loss."""
        return None

    def start_phase(self, phase: int, rng: torch.Generator) -> None:  # noqa: ARG002
        """There is only one."""
        raise AssertionError(f"phase {phase} of a head with one")

    def no_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: biases and norms."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def observe(self, prepared: Any) -> Float[Tensor, " X"] | None:  # noqa: ARG002
        """Nothing beside the logits."""
        return None

    def findings(self, observed: Float[Tensor, " X"] | None) -> dict[str, list[dict[str, Any]]]:  # noqa: ARG002
        """Nothing."""
        return {}
