"""A test by sliding windows: maps of the squares of one image, put together to a map of the image.

In: `--windows`, and what a head says of each window.   Out: Windows; outputs over the resized image, the mean where
windows overlap. Called by `opened_dense`; `stream` has the windows cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from loffta.crop import Windows
from loffta.errors import UsageError
from loffta.evaluation.dense import MAX_OUTPUT_PX

TASKS = ("segmentation", "depth", "boundaries")  # whose outputs are of pixels, and mean the same in every window


def parse_windows(text: str) -> Windows:
    """From "512/341", side and stride.

    Raises:
        UsageError: it is something else, or a stride that leaves gaps or repeats itself.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    side, stride = map(int, found.groups()) if found else (0, 0)
    if 1 <= side <= MAX_OUTPUT_PX and side * Windows.LEAST_STRIDE <= stride <= side:
        return Windows(side, stride)
    raise UsageError(
        f"{text!r} is no side and stride of windows",
        where="--windows",
        remedy=f"give SIDE/STRIDE in pixels, a side up to {MAX_OUTPUT_PX} and a stride of a quarter of it to all of it:"
        " 512/341",
    )


def check_windows(windows: Windows, task: str, output_px: int | None) -> None:
    """Raises UsageError where there are no maps to put together, or another side is asked for."""
    if task not in TASKS:
        raise UsageError(
            f"windows are put together pixel by pixel, and {task} is of objects",
            where=f"--windows {windows}",
            remedy=f"leave it out; it is for {', '.join(TASKS)}",
        )
    if output_px is not None:
        raise UsageError(
            "outputs have the side of their windows", where="--output-px, with --windows", remedy="leave one out"
        )


def put_together(
    windows: Windows, resized: tuple[int, int], parts: Iterable[Float[Tensor, "n K S S"]]
) -> Float[Tensor, "1 K h w"]:
    """The mean of what is said of each pixel.

    Args:
        resized: (width, height) that the windows cover.
        parts: outputs of all windows in the order of `Windows.corners`, some at a time.
    """
    width, height = resized
    corners = windows.corners(resized)
    counts = torch.zeros(height, width)
    for left, top in corners:
        counts[top : top + windows.side, left : left + windows.side] += 1
    places, total = iter(corners), None
    for part in parts:
        if total is None:
            total = part.new_zeros(part.shape[1], height, width)
        for outputs in part:
            left, top = next(places)
            total[:, top : top + windows.side, left : left + windows.side] += outputs
    assert total is not None, "every image has a window"
    return (total / counts.to(total.device))[None]
