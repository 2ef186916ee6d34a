"""A head of two phases that draws noise: all that a loop has to look after, in a few lines."""

from typing import ClassVar

import torch
from torch import nn

from loffta.heads import HEADS, HeadEntry
from loffta.heads.base import HeadBase
from loffta.heads.recipe import Recipe


class NoisyRecipe(Recipe, frozen=True):
    epochs: int = 2
    batch_size: int = 16
    lr: float = 1e-2
    weight_decay: float = 1e-2
    noise: float = 0.1

    def kinds(self):
        return ("mean",)

    def head_arguments(self):
        return {"noise": self.noise}


class NoisyHead(HeadBase):
    """Phase 0 scores the inputs with a penalty, phase 1 trains anew on the better half."""

    default_taps: ClassVar[str] = "all"
    n_phases: ClassVar[int] = 2

    def __init__(self, specs, n_classes, *, rng, noise):
        super().__init__()
        n_inputs = sum(len(spec.taps) * spec.dim for spec in specs)
        self.noise, self.scoring = noise, True
        self.classify = nn.Linear(n_inputs, n_classes)
        self.register_buffer("keep", torch.ones(n_inputs))
        self.draw(rng)

    def draw(self, rng):
        with torch.no_grad():
            self.classify.weight.normal_(std=0.1, generator=rng)
            self.classify.bias.zero_()

    def prepare(self, features):
        return torch.cat([feature.float().flatten(1) for feature in features], dim=1)

    def forward(self, prepared, rng=None):
        if rng is not None:
            prepared = prepared + self.noise * torch.randn(prepared.shape, generator=rng)
        return self.classify(prepared * self.keep)

    def penalty(self):
        return 0.01 * self.classify.weight.norm(dim=0).sum() if self.scoring else None

    def start_phase(self, phase, rng):
        assert phase == 1
        scores = self.classify.weight.detach().norm(dim=0)
        self.keep.copy_((scores >= scores.median()).float())
        self.scoring = False
        self.draw(rng)


def use_noisy_head(monkeypatch):
    monkeypatch.setitem(HEADS, "noisy", HeadEntry(NoisyHead, NoisyRecipe))
