"""Logistic regression for a path of C, on the device, in batches that stream.

In: moments of the training features (for scaling and preconditioning), then features and targets, pass after pass.
Out: a LinearMap per C.

    paths = [LogisticPath(moments, "softmax", n_classes), ...]      any number of taps, folds, label sets
    while not all(path.is_done for path in paths):
        for features, targets in batches:                           one read for all
            for path in paths: path.add(features, targets)
        for path in paths: path.step()

The objective is scikit-learn's, C * sum of weighted losses + |w|^2 / 2, the intercept free; `softmax` with one-hot
targets is its multinomial form, `sigmoid` with one column its binary and with several its one-vs-rest form. C is
finite, so there is a minimum even where classes are perfectly separated.

Each C starts where the one before it ended, with what is known of its curvature. The preconditioner is an upper bound
of the Hessian, (weighted scatter of the features + 1 / C)^-1 for every target. At first the weight is Boehning's 1/2
or 1/4 (Annals of the Institute of Statistical Mathematics 44, 1992), whose scatter the moments have; from then on an
image weighs by how undecided it still is, counted anew for each C and after every RENEW passes. So the number of
passes hardly depends on how features are scaled or correlated, and images that are decided count for nothing.

A C is done where a step is expected to gain less than `gap` of the objective. In float64, which DINOv2's evaluation
takes too: rounding in float32 hides the minimum of separated classes (1e-4 of it on the digits from C = 10 on).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Literal

import torch
from torch import Tensor

from loffta.probes.lbfgs import State, fresh_steps, keep_convex, minimise
from loffta.probes.maps import Features, LinearMap, RowWeights, Targets, doubles, sigmoid_loss, softmax_loss
from loffta.probes.moments import Moments

CS = tuple(10.0**power for power in range(-6, 6))  # the range of DINOv2's 45, in whole powers of 10
GAP = 1e-6
N_PASSES = 1000  # of a C at most: DINOv2's bound
RENEW = 20

_BOUND = {"softmax": 0.5, "sigmoid": 0.25}


class LogisticPath:
    """One set of features and one of targets, for C after C, the strongest penalty first."""

    _slope: Tensor  # sums of the pass that is under way
    _pull: Tensor

    def __init__(
        self,
        moments: Moments,
        form: Literal["softmax", "sigmoid"],
        n_targets: int,
        *,
        cs: Sequence[float] = CS,
        standardise: bool = False,
        gap: float = GAP,
    ) -> None:
        """Takes mean and scatter from the moments.

        Args:
            moments: of the images that will be added.
            cs: ascending.
            standardise: whether features are scaled to standard deviation 1. They are centred in any case, which
                changes the intercept alone.
            gap: by how much of it an objective may be too high, by estimate.
        """
        assert list(cs) == sorted(cs)
        k = moments.n_features
        self._form, self._cs, self._n_images, self._gap = form, tuple(cs), moments.weight, gap
        self._mean = moments.mean[:k]
        self._shrink = moments.deviation.reciprocal() if standardise else torch.ones_like(self._mean)
        self._scatter = moments.scatter[:k, :k] * self._shrink.outer(self._shrink) / moments.weight
        self.maps: list[LinearMap] = []  # one for each C that is done
        self.objectives: list[float] = []  # as scikit-learn counts them
        self.gaps: list[float] = []  # by how much of it each may be too high, by estimate
        self.n_passes = 0
        self._penalty = 0.0  # 1 / (C n): of the mean loss
        start = self._mean.new_zeros((k + 1, n_targets))  # weights in the scaled features; the last row: intercepts
        self._penalised = torch.ones_like(start)
        self._penalised[-1] = 0.0
        self._search = self._all(start)
        self._renews = False
        self._ask(next(self._search))

    @property
    def is_done(self) -> bool:
        """Whether all Cs are; what is added after that is ignored."""
        return len(self.maps) == len(self._cs)

    def add(self, features: Features, targets: Targets, weights: RowWeights | None = None) -> None:
        """One batch of a pass: the same images in every pass, with the same weights.

        Args:
            weights: of the images, such as those of their classes; 0 leaves an image out.
        """
        if self.is_done:
            return
        rows = doubles(features)
        device, goal = rows.device, targets.to(rows)
        logits = torch.addmm(self._asked.bias.to(device), rows, self._asked.weight.to(device))
        if self._form == "softmax":
            losses, chances = softmax_loss(logits, goal), logits.softmax(dim=1)
            bends = (1 - chances.square().sum(dim=1)).clamp(max=_BOUND["softmax"])
        else:
            losses, chances = sigmoid_loss(logits, goal), logits.sigmoid()
            bends = (chances * (1 - chances)).amax(dim=1)
        pulls = chances - goal
        if weights is not None:
            heavy = weights.to(rows)
            losses, pulls, bends = losses * heavy, pulls * heavy[:, None], bends * heavy
        self._value += float(losses.sum())
        self._pull = self._pull.to(device) + pulls.sum(dim=0)
        self._slope = self._slope.to(device).addmm_(rows.T, pulls)
        if self._renews:
            self._bend(features, bends)

    def step(self) -> None:
        """Ends a pass."""
        if self.is_done:
            return
        self.n_passes += 1
        slope = (self._slope - self._mean.to(self._pull)[:, None] * self._pull) * self._shrink.to(self._pull)[:, None]
        whole = torch.cat([slope, self._pull[None]]).to(self._point) / self._n_images
        penalised = self._point * self._penalised
        value = self._value / self._n_images + self._penalty / 2 * float(penalised.square().sum())
        try:
            self._ask(self._search.send((value, whole + self._penalty * penalised)))
        except StopIteration:
            assert self.is_done

    def _ask(self, point: Tensor) -> None:
        """Value and gradient are to be summed at `point`."""
        self._point, self._asked = point, self._map(point)
        self._value, self._slope = 0.0, torch.zeros_like(point[:-1])
        self._pull = torch.zeros_like(point[0])
        if self._renews:
            self._curves, self._share = torch.zeros_like(self._scatter), 0.0

    def _bend(self, features: Features, bends: Tensor) -> None:
        """For the preconditioner, which need not be exact: float32."""
        rows = (features.float() - self._mean.to(features.device).float()) * self._shrink.to(features.device).float()
        self._curves = self._curves.to(bends.device)
        self._curves += doubles(rows.T @ (rows * bends.to(rows)[:, None]))
        self._share += float(bends.sum())

    def _all(self, start: Tensor) -> Generator[Tensor, tuple[float, Tensor], None]:
        """Minimum after minimum, of mean loss + penalty / 2 * |w|^2."""
        state, steps = State(start, *(yield start)), fresh_steps()
        curves, share = self._scatter * _BOUND[self._form], _BOUND[self._form]
        for c in self._cs:
            added = 1 / (c * self._n_images) - self._penalty
            self._penalty += added
            weight = state.point * self._penalised
            state = State(
                state.point, state.value + added / 2 * float(weight.square().sum()), state.slope + added * weight
            )
            for i, (moved, bent) in enumerate(steps):  # as they would have been with this penalty
                steps[i] = (moved, bent + added * moved * self._penalised)
            keep_convex(steps)
            last = self.n_passes + N_PASSES
            while True:
                state = yield from minimise(state, _divider(curves, self._penalty, share), self._gap, steps, RENEW)
                if state.excess <= self._gap * state.value or self.n_passes >= last:
                    break
                self._renews = True
                state = State(state.point, *(yield state.point))
                self._renews = False
                curves, share = self._curves.to(start) / self._n_images, self._share / self._n_images
            self.maps.append(self._map(state.point))
            self.objectives.append(state.value * c * self._n_images)
            self.gaps.append(state.excess / state.value)

    def _map(self, point: Tensor) -> LinearMap:
        """Of the features as they come."""
        weight = point[:-1] * self._shrink[:, None]
        return LinearMap(weight, point[-1] - self._mean @ weight)


def _divider(curves: Tensor, penalty: float, share: float) -> Callable[[Tensor], Tensor]:
    """Divides gradients [K + 1, any] by a bound of the Hessian, the same for all targets."""
    bound = curves.clone()
    bound.diagonal().add_(penalty)
    factor = torch.linalg.cholesky(bound)
    return lambda slopes: torch.cat([torch.cholesky_solve(slopes[:-1], factor), slopes[-1:] / max(share, 1e-12)])
