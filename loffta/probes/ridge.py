"""Ridge regression and classification in closed form, from moments alone: no image is read a second time.

In: Moments of features and targets.   Out: a LinearMap for every strength of the penalty, and what each is worth.

    fit = Ridge(moments, standardise=True)            one eigendecomposition
    maps = [fit.map(strength) for strength in fit.strengths()]
    fit.cross_validation(strength)                    generalised, on the same images
    mean_squares(validation_moments, a_map)           on others, from their moments

The objective is scikit-learn's: the sum of weighted squared errors plus strength * |w|^2, the intercept free. Targets
are values, or, for classification, +1 for the class of an image and -1 for all others (`signs`), as RidgeClassifier
has it. Subsets of taps, folds, sets of labels are moments of their own, from the same pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loffta.probes.maps import LinearMap
from loffta.probes.moments import Moments

STRENGTHS = tuple(10.0**power for power in range(-6, 3))  # of an image; ours


def signs(labels: Int[Tensor, " B"], n_classes: int) -> Float[Tensor, "B T"]:
    """Targets of classification: +1 and -1; of two classes the second alone, as scikit-learn has it."""
    targets = F.one_hot(labels, n_classes).double() * 2 - 1
    return targets[:, 1:] if n_classes == 2 else targets


class Ridge:
    """All strengths of the penalty, for K features and T targets."""

    def __init__(self, moments: Moments, *, standardise: bool) -> None:
        """Decomposes the K x K scatter, in float64.

        Args:
            standardise: penalise each feature by its standard deviation, as scaling to 1 beforehand does.
        """
        k = moments.n_features
        self._moments = moments
        self._scale = moments.deviation if standardise else torch.ones_like(moments.mean[:k])
        within = moments.scatter[:k, :k] / self._scale.outer(self._scale)
        values, self._axes = torch.linalg.eigh(within)
        self._values = values.clamp(min=0.0)  # what rounding makes negative
        self._shared = self._axes.T @ (moments.scatter[:k, k:] / self._scale[:, None])

    def strengths(self) -> tuple[float, ...]:
        """The default path: 10^-6 to 10^2 a unit of weight, so that as many steps matter for 10 images as for 10^6."""
        return tuple(each * self._moments.weight for each in STRENGTHS)

    def map(self, strength: float) -> LinearMap:
        """The minimum for one strength, above 0."""
        assert strength > 0
        k, mean = self._moments.n_features, self._moments.mean
        weight = (self._axes @ (self._shared / (self._values + strength)[:, None])) / self._scale[:, None]
        return LinearMap(weight, mean[k:] - mean[:k] @ weight)

    def cross_validation(self, strength: float) -> Float[Tensor, " T"]:
        """Generalised cross-validation (Golub, Heath and Wahba, Technometrics 21, 1979), of each target.

        n * (sum of squares left) / (n - degrees of freedom)^2, the intercept being one of these. For images of equal
        weight; it is not scikit-learn's leave-one-out, which its RidgeCV calls by the same name.
        """
        moments, k = self._moments, self._moments.n_features
        shrunk = self._values / (self._values + strength)
        explained = (self._shared.square() * ((2 - shrunk) / (self._values + strength))[:, None]).sum(dim=0)
        left = (moments.scatter.diagonal()[k:] - explained).clamp(min=0.0)
        free = moments.weight - 1 - float(shrunk.sum())
        found: Tensor = moments.weight * left / free**2
        return found


def solve(moments: Moments, strength: float, *, standardise: bool) -> LinearMap:
    """The minimum for one strength, as `Ridge.map` gives it, by a Cholesky factor.

    Of 768 features a factor takes 7 ms of a core and the decomposition, which serves all strengths, 100.
    """
    assert strength > 0
    k, mean = moments.n_features, moments.mean
    within = moments.scatter[:k, :k].clone()
    # as penalising each scaled feature by `strength` does
    within.diagonal().add_(moments.deviation.square() * strength if standardise else strength)
    weight = torch.cholesky_solve(moments.scatter[:k, k:], torch.linalg.cholesky(within))
    return LinearMap(weight, mean[k:] - mean[:k] @ weight)


def mean_squares(moments: Moments, fitted: LinearMap) -> Float[Tensor, " T"]:
    """The mean squared error of a map on images of which there are moments, such as a fold or a validation split."""
    k = moments.n_features
    weight = fitted.weight.to(moments.mean.device)
    bias = fitted.bias.to(moments.mean.device)
    off = moments.mean[:k] @ weight + bias - moments.mean[k:]
    spread = (weight.T * (weight.T @ moments.scatter[:k, :k])).sum(dim=1)  # half the time of scatter @ weight
    shared = (weight * moments.scatter[:k, k:]).sum(dim=0)
    return (spread - 2 * shared + moments.scatter.diagonal()[k:]) / moments.weight + off.square()
