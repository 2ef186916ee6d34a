"""Logistic regression of a layer: a path of C, one of them chosen on images that were left out, that one on all images.

In:  moments of the training images, then the images, pass after pass, for as many layers and trials as are wanted.
Out: a map to all classes, and its C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loffta.probes.logreg import CS, LogisticPath
from loffta.probes.maps import LinearMap, PathLosses, sigmoid_loss, softmax_loss
from loffta.probes.moments import Moments
from loffta.scan.plan import Trial

if TYPE_CHECKING:
    from loffta.scan.probing import Goal

C = 1.0  # where no image can be spared to choose on: scikit-learn's


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
        self._parts: tuple[int, ...] = trial.fit
        self._losses: PathLosses | None = None
        self.is_done = False
        if trial.validate and len(self._classes) > 1:
            self._path: LogisticPath | None = self._begin(fit, self._classes, CS)
        else:
            self._finish(C)

    def add(self, vectors: Tensor, rows: Tensor, members: Tensor) -> None:
        """One batch of a pass; see `Probe.add`."""
        here = members[list(self._parts)].any(dim=0)
        if self._losses is not None and not self._goal.several:
            here &= torch.isin(self._goal.labels[rows], self._classes)  # others have no place among the outputs
        if self.is_done or not here.any():
            return
        own, at = vectors[here], rows[here]
        targets = self._goal.hot(at, self._classes)
        if self._losses is not None:
            self._losses.add(own, targets)
        elif self._path is not None:
            self._path.add(own, targets)

    def end_pass(self) -> None:
        """What comes next: another step, the choice of C, the fit on all."""
        if self._losses is not None:
            best, self._losses = self._losses.best, None
            self._finish(CS[best])
            return
        if self.is_done or self._path is None:
            return
        self._path.step()
        if not self._path.is_done:
            return
        if self._parts == self._trial.fit and len(self._path.maps) > 1:
            self._losses = PathLosses(self._path.maps, self._loss(self._classes))
            self._parts = self._trial.validate
        else:
            self.fitted, self.is_done = self._goal.whole(self._path.maps[0], self._classes), True

    def _finish(self, c: float) -> None:
        """The fit on all training images, from nothing; of one class there is nothing to fit."""
        self.c, self._classes, self._parts = c, self._last, self._trial.refit
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

    def _loss(self, classes: Tensor):  # noqa: ANN202
        return sigmoid_loss if self._goal.several or len(classes) == 2 else softmax_loss
