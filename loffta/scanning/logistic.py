"""Logistic regression of a layer: a path of C, one of them chosen on images that were left out, that one on all images.

In:  moments of the training images, then the images, pass after pass, for as many layers and trials as are wanted.
Out: a map to all classes, and its C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loffta.probes.logreg import CS, LogisticPath
from loffta.probes.maps import LinearMap, PathLosses, sigmoid_loss, softmax_loss
from loffta.probes.moments import Moments
from loffta.scanning.plan import Trial

if TYPE_CHECKING:
    from loffta.scanning.probing import Goal

C = 1.0  # where no image can be spared to choose on: scikit-learn's
PATIENCE = 2  # a path ends where so many Cs validate worse than the best; ours: large Cs cost most and seldom win


class Logistic:
    """One trial; `add` every batch, `end_pass`, until `is_done`."""

    fitted: LinearMap  # when it is done
    c: float

    def __init__(
        self,
        trial: Trial,
        fit: Moments,
        final: Moments,
        classes: tuple[Tensor, Tensor],
        goal: Goal,
        standardise: bool,
    ) -> None:
        """Begins with the path of C, or where nothing validates with the end.

        Args:
            fit: moments of the images that every C is fitted on.
            final: of those that the chosen one is.
            classes: that occur among the former and among the latter.
        """
        self._trial, self._final, self._goal, self._standardise = trial, final, goal, standardise
        self._classes, self._last = classes
        self._parts = trial.fit
        self._losses: list[float] = []  # of each C that is done, on the images that validate
        self._validating: PathLosses | None = None
        self._final_fit = self.is_done = False
        if trial.validate and len(self._classes) > 1:
            self._path = self._begin(fit, self._classes, CS)
        else:
            self._finish(C)

    def add(self, vectors: Tensor, rows: Tensor, members: Tensor) -> None:
        """One batch of a pass; see `Probe.add`."""
        if self.is_done:
            return
        here = members[list(self._trial.validate if self._validating else self._parts)].any(dim=0)
        if self._validating and not self._goal.several:
            here &= torch.isin(self._goal.labels[rows], self._classes)  # others have no place among the outputs
        if not here.any():
            return
        own, targets = vectors[here], self._goal.hot(rows[here], self._classes)
        if self._validating:
            self._validating.add(own, targets)
        else:
            self._path.add(own, targets)

    def end_pass(self) -> None:
        """What comes next: a step, or the loss of a C that is done, or the fit on all."""
        if self.is_done:
            return
        if self._validating:
            self._losses.append(float(self._validating.totals[0]))
            self._validating = None
            best = self._losses.index(min(self._losses))
            if self._path.is_done or len(self._losses) > best + PATIENCE:
                self._choose(best)
            return
        self._path.step()
        if self._final_fit:
            if self._path.is_done:
                self.fitted, self.is_done = self._goal.whole(self._path.maps[0], self._classes), True
        elif len(self._path.maps) > len(self._losses):
            self._validating = PathLosses(self._path.maps[-1:], self._loss(self._classes))

    def _choose(self, best: int) -> None:
        """Where the images that validate are not trained on, the map is there already."""
        if self._trial.refit == self._trial.fit:
            self.c, self.is_done = CS[best], True
            self.fitted = self._goal.whole(self._path.maps[best], self._classes)
        else:
            self._finish(CS[best])

    def _finish(self, c: float) -> None:
        """The fit on all training images, from nothing; of one class there is nothing to fit."""
        self.c, self._classes, self._parts, self._final_fit = c, self._last, self._trial.refit, True
        if len(self._classes) == 1:
            k = self._final.n_features
            zero = self._final.mean.new_zeros
            self.fitted, self.is_done = self._goal.whole(LinearMap(zero((k, 1)), zero(1)), self._classes), True
            return
        self._path = self._begin(self._final, self._classes, (c,))

    def _begin(self, moments: Moments, classes: Tensor, cs: tuple[float, ...]) -> LogisticPath:
        softmax = self._loss(classes) is softmax_loss
        n_targets = len(classes) if softmax or self._goal.several else 1
        return LogisticPath(
            moments, "softmax" if softmax else "sigmoid", n_targets, cs=cs, standardise=self._standardise
        )

    def _loss(self, classes: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return sigmoid_loss if self._goal.several or len(classes) == 2 else softmax_loss
