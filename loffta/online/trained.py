"""A backbone that is trained along: with its head one module, a member's head with more parameters.

In: a head, a Network and a seed.   Out: TrainedNetwork, which `training.fit` steps like any head; what it is fed are
pixels. Each member has a network of its own, so that a seed trained beside others is what it is alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from loffta.heads import Head
from loffta.heads.base import HeadBase
from loffta.heads.scale import Scale
from loffta.online.network import Network
from loffta.shapes import Logits
from loffta.training.optim import parameter_groups


class TrainedNetwork(HeadBase):
    """Logits from pixels: the features of its own copy of a backbone, and a head on them.

    Args:
        head: of one phase.
        network: one that can be trained; it is copied, and its weights stay as they are.
        seed: of what the network itself draws (timm's drop path, where it has any).
    """

    default_taps: ClassVar[str] = ""  # it is no head to name

    def __init__(self, head: Head, network: Network, seed: int) -> None:
        super().__init__()
        assert isinstance(head, nn.Module), "every head is one"
        self.head = head
        self._network = replace(network, backbone=copy.deepcopy(network.backbone))
        self.backbone = self._network.model.requires_grad_(True)
        self._seed = seed
        self._steps = 0

    @property
    def scale(self) -> Scale | None:
        """The head's."""
        return self.head.scale

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Both, by the names of their files."""
        return {"head": self.head, "backbone": self.backbone}

    def prepare(self, features: Sequence[UInt8[Tensor, "B 3 S S"]]) -> UInt8[Tensor, "B 3 S S"]:
        """The pixels, as they are."""
        (pixels,) = features
        return pixels

    def forward(self, pixels: UInt8[Tensor, "B 3 S S"], rng: torch.Generator | None = None) -> Logits:
        """Takes what `prepare` gave; `rng` is the head's."""
        if rng is None:
            features = self._network.features(pixels, gradients=False)
        else:
            with self._own_randomness(pixels.device):
                features = self._network.features(pixels, gradients=True)
        logits: Tensor = self.head(self.head.prepare(features), rng)
        return logits

    def penalty(self) -> Tensor | None:
        """The head's."""
        found: Tensor | None = self.head.penalty()
        return found

    def groups(self, weight_decay: float, scale: float) -> list[dict[str, Any]]:
        """For the optimiser: the head's, then the backbone's, whose vectors do not decay.

        Args:
            scale: the backbone's rate over the head's, at every step.
        """
        parameters = list(self.backbone.parameters())
        return parameter_groups(self.head, weight_decay) + [
            {"name": name, "params": [p for p in parameters if (p.ndim > 1) == decays], "scale": scale}
            | {"weight_decay": weight_decay if decays else 0.0}
            for name, decays in (("backbone", True), ("backbone_no_decay", False))
        ]

    def get_extra_state(self) -> Tensor:
        """The steps taken: a training that goes on draws what it would have drawn."""
        return torch.tensor(self._steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`."""
        self._steps = int(state)

    @contextmanager
    def _own_randomness(self, device: torch.device) -> Iterator[None]:
        """What a network draws comes from torch's global generator; here it depends on seed and step alone."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed * 1_000_003 + self._steps)
            self._steps += 1
            yield
