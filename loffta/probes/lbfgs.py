"""L-BFGS that asks: whoever minimises hands it value and gradient, however these were summed.

In: a start, and for each point that is yielded its value and gradient.   Out: where it ends. A generator, so that many
minimisations go on side by side on one read of the data; called by `logreg`.

Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.1, with the last 10 steps kept. For convex functions:
then every step gives a curvature that is not negative, and backtracking is enough. The first guess of the inverse
Hessian is a preconditioner, scaled by the last step as the identity is there (7.20).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

N_KEPT = 10
_ARMIJO = 1e-4
_NOISE = 1e-12  # of a value: what is nearer is equal
_SHORTEST = 1e-6  # of a step; where a shorter one were needed, rounding hides all progress

Steps: TypeAlias = deque[tuple[Tensor, Tensor]]  # how far, and by how much the gradient changed


class State(NamedTuple):
    """A point, what is known there, and how much lower the minimum is by estimate."""

    point: Tensor
    value: float
    slope: Tensor
    excess: float = float("inf")


Asking: TypeAlias = Generator[Tensor, tuple[float, Tensor], State]


def minimise(state: State, precondition: Callable[[Tensor], Tensor], gap: float, steps: Steps, n_steps: int) -> Asking:
    """Yields points; wants their value and gradient sent.

    It ends where half the gradient's squared length, in the metric of the estimated Hessian, is less than `gap` of the
    value: that is what a Newton step would gain (Boyd and Vandenberghe, Convex Optimization, 9.5.1).

    Args:
        precondition: times a symmetric, positive matrix near the inverse Hessian.
        steps: of a function nearby, or empty; those taken are added.
    """
    point, value, slope, _ = state
    for left in range(n_steps, -1, -1):
        direction = _direction(slope, precondition, steps)
        descent, length = float((direction * slope).sum()), 1.0
        if -descent / 2 <= gap * value or left == 0:
            break
        while True:
            there = point + length * direction
            new_value, new_slope = yield there
            if new_value <= value + _ARMIJO * length * descent + _NOISE * value:
                break
            # where the parabola through both values and the slope has its minimum, within bounds
            length *= min(0.5, max(0.1, -descent * length / (2 * (new_value - value - descent * length))))
            if length < _SHORTEST:
                return State(point, value, slope, -descent / 2)
        steps.append((there - point, new_slope - slope))
        point, value, slope = there, new_value, new_slope
        keep_convex(steps)
    return State(point, value, slope, -descent / 2)


def _direction(slope: Tensor, precondition: Callable[[Tensor], Tensor], steps: Steps) -> Tensor:
    """Minus the estimated inverse Hessian times the gradient: the two loops of algorithm 7.4."""
    rest, shares = slope.clone(), []
    found: Tensor
    for moved, bent in reversed(steps):
        share = (moved * rest).sum() / (moved * bent).sum()
        rest -= share * bent
        shares.append(share)
    if steps:
        moved, bent = steps[-1]
        both = precondition(torch.cat([rest, bent], dim=1))
        n_targets = rest.shape[1]
        found, bent_back = both[:, :n_targets], both[:, n_targets:]
        found = found * ((moved * bent).sum() / (bent * bent_back).sum())
    else:
        found = precondition(rest)
    for (moved, bent), share in zip(steps, reversed(shares), strict=True):
        found = found + moved * (share - (bent * found).sum() / (moved * bent).sum())
    return -found


def fresh_steps() -> Steps:
    """None yet."""
    return deque(maxlen=N_KEPT)


def keep_convex(steps: Steps) -> None:
    """Forgets steps along which the function does not bend upwards: by rounding, or after it was changed."""
    good = [pair for pair in steps if float((pair[0] * pair[1]).sum()) > 0]
    steps.clear()
    steps.extend(good)
