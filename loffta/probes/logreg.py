"""Logistic regression for a path of C, on the device, in batches that stream.

In: moments of the training features (for centring and scaling), then features and targets, pass after pass.
Out: a LinearMap per C.

    paths = [LogisticPath(moments, "softmax", n_classes), ...]      any number of taps, folds, label sets
    while not all(path.is_done for path in paths):
        for features, targets in batches:                           one read for all
            for path in paths: path.add(features, targets)
        for path in paths: path.step()

The objective is scikit-learn's, C * sum of weighted losses + |w|^2 / 2, the intercept free; `softmax` with one-hot
targets is its multinomial form, `sigmoid` with one column its binary and with several its one-vs-rest form. C is
finite, so there is a minimum even where classes are perfectly separated.

A pass gives value and gradient, and keeps rows of images that are undecided; from these `newton` finds the next point,
in memory. So a C takes some 4 passes. Each C starts where the line through the last two minima, over log C, ends: from
there the digits need half of the products that they need from the last minimum.

A C is done where a step is expected to gain less than `gap` of the objective. Values and gradients are in float64,
which DINOv2's evaluation takes too: rounding in float32 hides the minimum of separated classes (1e-4 of it on the
digits from C = 10 on).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from loffta.machine import process
from loffta.probes.held import Form, Holder
from loffta.probes.maps import Features, LinearMap, RowWeights, Targets, doubles, sigmoid_loss, softmax_loss
from loffta.probes.moments import Moments
from loffta.probes.newton import Point, divider, newton_step

CS = tuple(10.0**power for power in range(-6, 6))  # the range of DINOv2's 45, in whole powers of 10
GAP = 1e-5  # the digits' objectives are 3e-5 too high at most
N_PASSES = 1000  # of a C at most: DINOv2's bound

# Rows times columns times targets of one of Newton's products, below which torch gets one thread: of 1,000 rows with
# 320 columns and 10 targets a path took 0.24 s of the processor with one, 1.56 s with two on CPUs that others use
_SMALL = 4_000_000

_ARMIJO = 1e-4  # Nocedal and Wright, algorithm 3.1
_NOISE = 1e-12  # of a value: what is nearer is equal
_SHORTEST = 1e-6  # of a step; where a shorter one were needed, rounding hides all progress


def n_held(n_features: int) -> int:
    """Rows that a path keeps, about: as large as 8 matrices K x K in float64."""
    return max(4096, 16 * n_features)  # of 12,000 images with 320 columns 12 K rows want 12 passes a C, all rows 4


class LogisticPath:
    """One set of features and one of targets, for C after C, the strongest penalty first."""

    _slope: Tensor  # sums of the pass that is under way; the last column: of the intercepts

    def __init__(
        self,
        moments: Moments,
        form: Form,
        n_targets: int,
        *,
        cs: Sequence[float] = CS,
        standardise: bool = False,
        gap: float = GAP,
    ) -> None:
        """Takes mean and deviation from the moments.

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
        self.maps: list[LinearMap] = []  # one for each C that is done
        self.objectives: list[float] = []  # as scikit-learn counts them
        self.gaps: list[float] = []  # by how much of it each may be too high, by estimate
        self.n_passes = 0
        self._penalties = self._mean.new_zeros(k + 1)  # 1 / (C n), of the mean loss; 0 of the intercept
        self._holder = Holder(form, n_held(k), moments.weight)
        self._is_small = min(n_held(k), self._n_images) * k * n_targets < _SMALL
        self._search = self._all(self._mean.new_zeros((n_targets, k + 1)))
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
        with process.one_thread(self._is_small):
            self._add(features, targets, weights)

    def _add(self, features: Features, targets: Targets, weights: RowWeights | None) -> None:
        rows = doubles(features)
        goal = targets.to(rows).T.contiguous()
        heavy = rows.new_ones(len(rows)) if weights is None else weights.to(rows)
        logits = torch.addmm(self._asked.bias.to(rows)[:, None], self._asked.weight.to(rows).T, rows.T)
        if self._form == "softmax":
            losses, chances = softmax_loss(logits.T, goal.T), logits.softmax(dim=0)
        else:
            losses, chances = sigmoid_loss(logits.T, goal.T), logits.sigmoid()
        pulls = (chances - goal) * heavy
        self._value += float(losses @ heavy)
        self._slope = self._slope.to(rows.device)
        self._slope[:, :-1] += pulls @ rows
        self._slope[:, -1] += pulls.sum(dim=1)
        self._holder.add(features.to(rows.device), chances, heavy / self._n_images, self._scaled)

    def step(self) -> None:
        """Ends a pass."""
        if self.is_done:
            return
        self.n_passes += 1
        slope = self._slope.to(self._point)
        slope[:, :-1] = (slope[:, :-1] - slope[:, -1:] * self._mean) * self._shrink
        value = self._value / self._n_images + float((self._point.square() * self._penalties).sum()) / 2
        try:
            with process.one_thread(self._is_small):
                self._ask(self._search.send((value, slope / self._n_images + self._penalties * self._point)))
        except StopIteration:
            assert self.is_done

    def _ask(self, point: Point) -> None:
        """Value and gradient are to be summed at `point`."""
        self._point, self._asked = point, self._map(point)
        self._value, self._slope = 0.0, torch.zeros_like(point)
        self._holder.begin()

    def _all(self, point: Point) -> Generator[Point, tuple[float, Tensor], None]:
        """Minimum after minimum, of mean loss + penalty / 2 * |w|^2."""
        minima: list[Point] = []
        for i, c in enumerate(self._cs):
            self._penalties[:-1] = 1 / (c * self._n_images)
            if i >= 2:
                ahead = math.log(c / self._cs[i - 1]) / math.log(self._cs[i - 1] / self._cs[i - 2])
                point = minima[1] + ahead * (minima[1] - minima[0])
            point, value, gain = yield from self._minimise(point)
            minima = [*minima[-1:], point]
            self.maps.append(self._map(point))
            self.objectives.append(value * c * self._n_images)
            self.gaps.append(gain / value)

    def _minimise(self, point: Point) -> Generator[Point, tuple[float, Tensor], tuple[Point, float, float]]:
        """One minimum, its value, and how much lower it may be."""
        value, slope = yield point
        held = self._holder.take()
        divide = divider(held, self._form, self._penalties)
        last = self.n_passes + N_PASSES
        while True:
            step = newton_step(slope, held, self._form, self._penalties, divide, self._gap * value)
            descent, length = float((step.direction * slope).sum()), 1.0
            if step.gain <= self._gap * value or self.n_passes >= last:
                return point, value, step.gain
            while True:
                there = point + length * step.direction
                new_value, new_slope = yield there
                if new_value <= value + _ARMIJO * length * descent + _NOISE * value:
                    break
                # where the parabola through both values and the slope has its minimum, within bounds
                length *= min(0.5, max(0.1, -descent * length / (2 * (new_value - value - descent * length))))
                if length < _SHORTEST:
                    return point, value, step.gain
            point, value, slope, held = there, new_value, new_slope, self._holder.take()

    def _scaled(self, features: Features) -> Tensor:
        """Centred, scaled if need be, and a 1."""
        found = torch.ones((len(features), features.shape[1] + 1), device=features.device)
        torch.sub(features, self._mean.to(found), out=found[:, :-1])
        found[:, :-1] *= self._shrink.to(found)
        return found

    def _map(self, point: Point) -> LinearMap:
        """Of the features as they come."""
        weight = point[:, :-1] * self._shrink
        return LinearMap(weight.T, point[:, -1] - weight @ self._mean)
