"""Boundaries: how likely a pixel is to be the border of an object; binary cross-entropy, overlap, F at a tolerance.

In:  outputs [B, 1, Ho, Wo], maps of instances (0 none).   Out: the loss for `train`; of each image counts of pixels,
and metrics of their sums. See `dense` for who calls.

    boundary_iou  intersection over union of border pixels at probability 0.5, all images as one (torchmetrics' binary
                  Jaccard index, as the release of DeAP)
    boundary_f    harmonic mean of precision, the share of predicted border pixels no further than the tolerance from a
                  true one, and of recall, the same the other way round, both of all images as one
    boundary_bce  mean binary cross-entropy of the pixels, in nats: the loss

A pixel is a border where one of its four neighbours has another number (scikit-image's `find_boundaries`, thick); then
borders are dilated by a box of h/100 x w/100 pixels, at least 1 (the release of DeAP; OpenCV's anchor). So maps of any
size have borders of about the same share of the image. Pixels of no countable object count nowhere and make no border.

`boundary_f` approximates the benchmark of BSDS (Martin, Fowlkes and Malik, PAMI 2004), which thins predictions and
matches pixels one to one: here several may match one, and the threshold is 0.5, not the best of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loffta.shapes import TargetBatch
from loffta.targets import IGNORE_16, DenseSettings, NativeTarget, Readout
from loffta.tasks.bootstrap import Weights, ratio
from loffta.tasks.pixels import Losses, Outputs, Recount, at_size, label_map, maps_of

_SHARE = 100  # a border is dilated by this part of a side


class Borders(NamedTuple):
    """Pixels of one image."""

    n_pixels: int
    losses: float  # summed cross-entropy
    true: int  # border pixels
    predicted: int
    both: int
    true_near: int  # true ones with a predicted one within the tolerance
    predicted_near: int


def readout(_n_classes: int, _settings: DenseSettings) -> Readout:
    """A logit."""
    return Readout((1,))


def loss(
    outputs: Outputs, targets: TargetBatch, _settings: DenseSettings, _proxies: object = None, _rng: object = None
) -> Losses:
    """Binary cross-entropy, the mean over all pixels that count."""
    borders, counted = find_borders(maps_of(targets))
    logits = at_size(outputs, borders.shape[1:])[:, 0]
    losses = F.binary_cross_entropy_with_logits(logits, borders.float(), reduction="none")
    return Losses(losses.where(counted, 0.0).sum(dim=(1, 2)), counted.sum(dim=(1, 2)).float())


def find_borders(instances: Shaped[Tensor, "B h w"]) -> tuple[Bool[Tensor, "B h w"], Bool[Tensor, "B h w"]]:
    """Borders, dilated, and which pixels count; on any device, for maps in training and at the label's size alike."""
    numbers = instances.to(torch.int64)
    counted = numbers != IGNORE_16
    thin = torch.zeros_like(counted)
    for axis in (1, 2):
        n = numbers.shape[axis]
        first, second = numbers.narrow(axis, 0, n - 1), numbers.narrow(axis, 1, n - 1)
        differ = (first != second) & counted.narrow(axis, 0, n - 1) & counted.narrow(axis, 1, n - 1)
        thin.narrow(axis, 0, n - 1).logical_or_(differ)
        thin.narrow(axis, 1, n - 1).logical_or_(differ)
    return _dilate(thin) & counted, counted


def records(
    outputs: Outputs, natives: Sequence[NativeTarget], settings: DenseSettings, _n_classes: int
) -> list[Borders]:
    """The counts of each image, at its label's own size."""
    found = []
    for of_image, native in zip(outputs, natives, strict=True):
        numbers = torch.from_numpy(label_map(native, settings.eval_px).astype(np.int64))
        borders, counted = (of[0] for of in find_borders(numbers[None]))
        logits = at_size(of_image[None], numbers.shape)[0, 0].cpu()
        losses = F.binary_cross_entropy_with_logits(logits.double(), borders.double(), reduction="none")
        near = settings.tolerance * float(np.hypot(*numbers.shape))
        loss_sum = float(losses[counted].sum())
        found.append(_count(borders.numpy(), ((logits >= 0) & counted).numpy(), int(counted.sum()), loss_sum, near))
    return found


def recount(records: Sequence[Borders], _classes: Sequence[str], _settings: DenseSettings) -> Recount:
    """The metrics of one seed in any resample; overlap and F are NaN where no pixel of it is a border."""
    counts = np.array(records, np.float64)

    def count(weights: Weights) -> dict[str, Float[np.ndarray, " R"]]:
        pixels, losses, true, predicted, both, true_near, predicted_near = (weights.astype(np.float64) @ counts).T
        precision = np.nan_to_num(ratio(predicted_near, predicted))
        recall = ratio(true_near, true)
        f = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
        return {
            "boundary_iou": np.where(true > 0, ratio(both, true + predicted - both), np.nan),
            "boundary_f": np.where(true > 0, f, np.nan),
            "boundary_bce": ratio(losses, pixels),
        }

    return count


def notes(records: Sequence[Borders], _classes: Sequence[str], _settings: DenseSettings) -> dict[str, str]:
    """By metric: why it is left out."""
    if any(record.true for record in records):
        return {}
    return dict.fromkeys(("boundary_iou", "boundary_f"), "left out: no pixel is a border")


def details(records: Sequence[Sequence[Borders]], _classes: Sequence[str], _settings: DenseSettings) -> dict[str, Any]:
    """Pixels of all images, and what F is made of, mean over seeds; None where nothing is predicted, or there."""
    sums = np.array(records, np.float64).sum(axis=1)
    pixels, _, true, predicted, _, true_near, predicted_near = sums.T
    precision, recall = ratio(predicted_near, predicted), ratio(true_near, true)
    return {
        "borders": {
            "pixels": int(pixels[0]),
            "border_pixels": int(true[0]),
            "predicted_pixels": float(predicted.mean()),
            "precision": None if np.isnan(precision).any() else float(precision.mean()),
            "recall": None if np.isnan(recall).any() else float(recall.mean()),
        }
    }


def decode(outputs: Outputs, _settings: DenseSettings, size: Sequence[int]) -> Float[np.ndarray, "B h w"]:
    """The probability of a border, in float32."""
    return np.asarray(at_size(outputs, size)[:, 0].sigmoid().cpu().numpy())


def _dilate(thin: Bool[Tensor, "B h w"]) -> Bool[Tensor, "B h w"]:
    """By a box around each pixel; one of an even side looks further to the left and to the top, as OpenCV's."""
    height, width = (max(1, n // _SHARE) for n in thin.shape[1:])
    pads = [(side // 2, side - 1 - side // 2) for side in (width, height)]
    return F.max_pool2d(F.pad(thin.float(), [*pads[0], *pads[1]]), (height, width), stride=1) > 0


def _count(
    true: Bool[np.ndarray, "h w"], predicted: Bool[np.ndarray, "h w"], n_pixels: int, losses: float, near: float
) -> Borders:
    return Borders(
        n_pixels=n_pixels,
        losses=losses,
        true=int(true.sum()),
        predicted=int(predicted.sum()),
        both=int((true & predicted).sum()),
        true_near=_n_near(true, predicted, near),
        predicted_near=_n_near(predicted, true, near),
    )


def _n_near(those: Bool[np.ndarray, "h w"], others: Bool[np.ndarray, "h w"], near: float) -> int:
    """How many of `those` have one of the others within so many pixels."""
    from scipy.ndimage import distance_transform_edt  # 0.2 s that boundaries alone need

    if not others.any():
        return 0
    return int((distance_transform_edt(~others)[those] <= near).sum())
