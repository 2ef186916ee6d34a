"""What each head gathers of a layer while the training images pass by, and what it predicts then.

In:  vectors of a layer, batch by batch, with the parts that each image is in.   Out: for every trial scores [n, C] of
the tested images, and what was chosen. One `Probe` per layer holds all heads; what they share (moments) is gathered
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loffta.config import HeadName, ScanConfig
from loffta.probes.knn import Neighbours, votes
from loffta.probes.maps import LinearMap
from loffta.probes.moments import Moments
from loffta.probes.ncm import ClassMeans
from loffta.probes.ridge import STRENGTHS, Ridge, mean_squares, signs, solve
from loffta.scanning.logistic import PATIENCE, Logistic
from loffta.scanning.plan import Plan, Trial

K = 20  # DINO: "20 is usually working the best"
_BLOCK = 4096  # tested images whose scores there are at a time


@dataclass(frozen=True)
class Goal:
    """What is to be learnt: one target per row of the table."""

    labels: Tensor  # [n] classes, or [n, C] whether an image has a class, or [n] numbers
    n_classes: int

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""
        return self.labels.ndim == 2

    @property
    def numbers(self) -> bool:
        """Whether there are no classes, but a number per image."""
        return self.labels.is_floating_point()

    @property
    def n_targets(self) -> int:
        """Columns of `signs`."""
        return 1 if self.numbers or (self.n_classes == 2 and not self.several) else self.n_classes

    def signs(self, rows: Tensor) -> Tensor:
        """[B, T] of +1 and -1: a column per class, of two classes the second alone; or the numbers, as one column."""
        labels = self.labels[rows]
        if self.numbers:
            return labels[:, None].double()
        return labels.double() * 2 - 1 if self.several else signs(labels, self.n_classes)

    def hot(self, rows: Tensor, classes: Tensor) -> Tensor:
        """[B, T] of 0 and 1 for these classes; of two single ones the second alone."""
        labels = self.labels[rows]
        if self.several:
            return labels.double()
        hot = (labels[:, None] == classes).double()
        return hot[:, 1:] if len(classes) == 2 else hot

    def occurring(self, rows: Tensor) -> Tensor:
        """Rising numbers of the classes that there is something to learn of."""
        if self.several:
            return torch.arange(self.n_classes, device=self.labels.device)
        found: Tensor = torch.unique(self.labels[rows])
        return found

    def whole(self, fitted: LinearMap, classes: Tensor) -> LinearMap:
        """A map to all classes, from one to these: a class without training images is never chosen."""
        weight, bias = fitted
        if len(bias) == 1 and len(classes) == 2 and not self.several:
            weight, bias = torch.cat([-weight, weight], dim=1), torch.cat([-bias, bias])
        at = classes.to(weight.device)
        all_weights = weight.new_zeros((len(weight), self.n_classes)).index_copy(1, at, weight)
        all_biases = bias.new_full((self.n_classes,), -torch.inf).index_copy(0, at, bias)
        return LinearMap(all_weights, all_biases)


@dataclass
class Found:
    """One head's answers on one layer, trial after trial."""

    scores: list[Iterator[Tensor]] = field(default_factory=list)  # [<= _BLOCK, C] each, of the tested images in order
    chosen: list[dict[str, Any]] = field(default_factory=list)


class Probe:
    """All heads on one layer."""

    def __init__(self, heads: Sequence[HeadName], tested: Tensor, plan: Plan, goal: Goal, config: ScanConfig) -> None:
        """Holds the vectors of the tested images.

        Args:
            tested: [n, K], of `plan.tested`.
        """
        self._heads, self._tested, self._plan, self._goal, self._config = heads, tested, plan, goal, config
        n_columns, device = tested.shape[1], tested.device
        self._moments: list[Moments] = []
        if "ridge" in heads or "logreg" in heads:
            self._moments = [Moments.empty(n_columns, goal.n_targets) for _ in plan.parts]
        self._means: list[ClassMeans] = []
        if "ncm" in heads:
            self._means = [ClassMeans(goal.n_classes, n_columns, "euclidean", device) for _ in plan.parts]
        self._neighbours: list[Neighbours] = []
        if "knn" in heads:
            sizes = [len(plan.rows(trial.refit)) for trial in plan.trials]
            wanted = [min(K, n) if config.k is None else config.k for n in sizes]
            tests = (tested[torch.from_numpy(trial.test).to(device)] for trial in plan.trials)
            self._neighbours = [Neighbours(queries, k) for queries, k in zip(tests, wanted, strict=True)]
        self._rows: list[list[Tensor]] = [[] for _ in self._neighbours]
        self.logistic: list[Logistic] = []

    def add(self, vectors: Tensor, rows: Tensor, members: Tensor) -> None:
        """One batch of the first pass.

        Args:
            members: [parts, B], whether an image is in a part.
        """
        for part, here in enumerate(members):
            if not (self._moments or self._means) or not here.any():
                continue
            whole = bool(here.all())
            own, at = (vectors, rows) if whole else (vectors[here], rows[here])
            if self._moments:
                self._moments[part].add(own, self._goal.signs(at))
            if self._means:
                self._means[part].add(own, self._goal.labels[at])
        for trial, found, seen in zip(self._plan.trials, self._neighbours, self._rows, strict=False):
            here = members[list(trial.refit)].any(dim=0)
            if here.any():
                found.add(vectors[here])
                seen.append(rows[here])

    def begin_logistic(self) -> None:
        """Behind the first pass."""
        for trial in self._plan.trials:
            fit, final = (self._sum(parts) for parts in (trial.fit, trial.refit))
            rows = torch.from_numpy(self._plan.rows(trial.fit)).to(self._goal.labels.device)
            more = torch.from_numpy(self._plan.rows(trial.refit)).to(rows)
            classes = self._goal.occurring(rows), self._goal.occurring(more)
            self.logistic.append(Logistic(trial, fit, final, classes, self._goal, self._config.standardise))

    def answer(self, head: HeadName) -> Found:
        """Behind the last pass."""
        found = Found()
        for i, trial in enumerate(self._plan.trials):
            if head == "knn":
                nearest = self._neighbours[i].nearest(self._neighbours[i].k)
                labels = self._goal.labels[torch.cat(self._rows[i])]
                scores = votes(nearest, labels, self._goal.n_classes, self._config.temperature)
                found.scores.append(iter(torch.split(scores, _BLOCK)))
                found.chosen.append({"k": self._neighbours[i].k})
                continue
            fitted, chosen = self._fit(head, i, trial)
            found.scores.append(self._apply(fitted, trial))
            found.chosen.append(chosen)
        return found

    def _fit(self, head: HeadName, i: int, trial: Trial) -> tuple[LinearMap, dict[str, Any]]:
        if head == "ncm":
            means = [self._means[part] for part in trial.refit]
            whole = means[0]
            for other in means[1:]:
                whole = whole.plus(other)
            return whole.fit(), {}
        if head == "ridge":
            return self._ridge(trial)
        done = self.logistic[i]
        return done.fitted, {"C": done.c}

    def _ridge(self, trial: Trial) -> tuple[LinearMap, dict[str, Any]]:
        final, standardise = self._sum(trial.refit), self._config.standardise
        if trial.validate:
            share = _choose_strength(self._sum(trial.fit), self._sum(trial.validate), standardise)
        else:
            fit = Ridge(final, standardise=standardise)
            losses = [float(fit.cross_validation(strength).mean()) for strength in fit.strengths()]
            share = STRENGTHS[int(np.nanargmin(losses))]
        fitted = solve(final, share * final.weight, standardise=standardise)
        if self._goal.numbers:
            return fitted, {"strength": share}
        rows = torch.from_numpy(self._plan.rows(trial.refit)).to(self._goal.labels.device)
        classes = self._goal.occurring(rows)
        if len(fitted.bias) > 1:
            at = classes.to(fitted.bias.device)
            fitted = LinearMap(fitted.weight[:, at], fitted.bias[at])
        return self._goal.whole(fitted, classes), {"strength": share}

    def _sum(self, parts: Sequence[int]) -> Moments:
        found = self._moments[parts[0]]
        for part in parts[1:]:
            found = found.plus(self._moments[part])
        return found

    def _apply(self, fitted: LinearMap, trial: Trial) -> Iterator[Tensor]:
        device = self._tested.device
        fitted = LinearMap(fitted.weight.to(device, torch.float32), fitted.bias.to(device, torch.float32))
        for places in torch.split(torch.from_numpy(trial.test).to(device), _BLOCK):
            yield fitted(self._tested[places])


def _choose_strength(fit: Moments, validate: Moments, standardise: bool) -> float:
    """The strength, of an image, with the lowest squared error; from the strongest on, as a path of C goes."""
    losses: list[float] = []
    for share in STRENGTHS[::-1]:
        losses.append(float(mean_squares(validate, solve(fit, share * fit.weight, standardise=standardise)).mean()))
        if len(losses) > losses.index(min(losses)) + PATIENCE:
            break
    return STRENGTHS[::-1][losses.index(min(losses))]
