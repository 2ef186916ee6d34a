"""A step of Newton's method for logistic regression, by conjugate gradients on rows that are held.

In: the gradient, and Held rows.   Out: a direction, and how much it gains. Called by `logreg`.

Conjugate gradients are Nocedal and Wright, Numerical Optimization, algorithm 5.3; they end where the model has little
left to gain (Nash and Sofer, Operations Research Letters 9, 1990). A row of a point belongs to a target: weights of the
scaled features, then the intercept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from loffta.probes.held import Form, Held, undecided

Point: TypeAlias = Float[Tensor, "T J"]

_FEWEST = 5  # products; after fewer the gain so far says little
_FORCING = 0.2  # the last product's share of the gain, times their number
_MOST = 1000


class Step(NamedTuple):
    """Where to, and by how much that lowers the quadratic model."""

    direction: Point
    gain: float


def newton_step(
    slope: Point,
    held: Held,
    form: Form,
    penalties: Float[Tensor, " J"],
    divide: Callable[[Point], Point],
    enough: float,
) -> Step:
    """Minimises the model, nearly.

    Args:
        penalties: of the squares of each column of the point.
        divide: as `divider` gives it; of this point or one nearby.
        enough: a gain that is not worth a step: as soon as it is seen to be no more, it is returned.
    """
    left, found, gain = -slope, torch.zeros_like(slope), 0.0
    direction = scaled = divide(left)
    length = float((left * scaled).sum())
    for n in range(1, _MOST + 1):
        bent = _bend(direction, held, form) + direction * penalties
        curvature = float((direction * bent).sum())
        if not (curvature > 0 and length > 0):  # at the minimum, but for rounding
            break
        stride = length / curvature
        found, left = found + stride * direction, left - stride * bent
        gain += stride * length / 2
        if n >= _FEWEST and (gain <= enough or n * stride * length / 2 <= _FORCING * gain):
            break
        scaled, before = divide(left), length
        length = float((left * scaled).sum())
        direction = scaled + (length / before) * direction
    return Step(found, gain)


def divider(held: Held, form: Form, penalties: Float[Tensor, " J"]) -> Callable[[Point], Point]:
    """Divides by an upper bound of the Hessian that is the same for all targets.

    Boehning's (Annals of the Institute of Statistical Mathematics 44, 1992), but that images weigh by how undecided
    they are.
    """
    bends = undecided(held.chances, form).clamp(max=0.5) * held.weights  # at most 1/2 for softmax, 1/4 for sigmoid
    bound = (held.rows.T @ (held.rows * bends[:, None])).to(penalties)
    bound.diagonal().add_(penalties)
    more = bound.diagonal() * 1e-9
    while True:
        bound.diagonal().add_(more)
        factor, failed = torch.linalg.cholesky_ex(bound)
        if not failed:
            inverse = torch.cholesky_inverse(factor)  # a product with it takes half of the time of two substitutions
            return lambda slope: slope @ inverse
        more = more * 10  # float32's rounding made an eigenvalue negative


def _bend(direction: Point, held: Held, form: Form) -> Point:
    """The Hessian of the loss, times a direction."""
    moved = direction.float() @ held.rows.T
    if form == "softmax":
        moved *= held.chances
        moved -= held.chances * moved.sum(dim=0)
    else:
        moved *= held.chances * (1 - held.chances)
    return ((moved * held.weights) @ held.rows).to(direction)
