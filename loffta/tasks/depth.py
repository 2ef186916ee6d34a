"""Depth: metres for every pixel; the scale-invariant log loss, and errors as the depth field counts them.

In:  outputs [B, 1, Ho, Wo] (`direct`) or [B, bins, Ho, Wo] (`bins`); maps in metres, of which what is not finite and
not between `min_depth` and `max_depth` counts nowhere.   Out: the loss for `train`; of each image sums over its valid
pixels, and metrics. See `dense` for who calls.

    rmse_pooled          root of the mean squared error of all pixels of the split, in metres (DeAP's release)
    rmse_image           root of an image's mean squared error, mean over images, in metres (DINOv2, DINOv3, AdaBins)
    abs_rel              mean of |error| / truth of an image, mean over images
    log10                mean of |log10(prediction) - log10(truth)| of an image, mean over images
    delta1, 2, 3         share of an image's pixels whose ratio to the truth is below 1.25, 1.25^2, 1.25^3, mean over
                         images (Eigen et al., NeurIPS 2014)

`direct` is ReLU + `min_depth`; `bins` a mean of `depth_bins` equally spaced depths, weighted by ReLU + 0.1 divided by
its sum: both as DINOv2's depth heads (`dinov2/eval/depth/models/decode_heads/decode_head.py`). Metres, not outputs, are
then brought to the label's size.

The loss is DINOv2's SigLoss (`losses/sigloss.py`, there too DeAP's): with g = log(prediction + 0.001) - log(truth +
0.001) over all valid pixels of the batch, sqrt(var(g) + 0.15 mean(g)^2), var with n - 1. (AdaBins writes it with lambda
0.85, and times alpha 10; alpha is 1 here.) It cannot be split by image: each image is given its share of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loffta.errors import UsageError
from loffta.shapes import TargetBatch
from loffta.targets import DenseSettings, NativeTarget, Readout
from loffta.tasks.bootstrap import Weights, ratio
from loffta.tasks.pixels import Losses, Outputs, Recount, at_size, label_map, maps_of

MEAN_SHARE = 0.15  # lambda
_EPS = 1e-3  # metres added within the logarithms
_BIN_FLOOR = 0.1
_LEAST = 1e-12  # under the root: at 0 its slope has no bound
_EIGEN = (480, 640), slice(45, 471), slice(41, 601)  # Eigen et al., NeurIPS 2014; AdaBins' and DINOv2's rows, columns
Depths: TypeAlias = Float[np.ndarray, "B h w"]


class Errors(NamedTuple):
    """Sums over the valid pixels of an image."""

    n_pixels: int
    square: float  # of errors in metres
    relative: float  # |error| / truth
    log10: float
    within: Float[np.ndarray, " 3"]  # pixels whose ratio is below 1.25, 1.25^2, 1.25^3
    truth: float
    truth_square: float


def readout(_n_classes: int, settings: DenseSettings) -> Readout:
    """A number, which starts near a metre (DeAP), or weights of depths."""
    return Readout((1,), bias=1.0) if settings.depth_as == "direct" else Readout((settings.depth_bins,))


def loss(
    outputs: Outputs, targets: TargetBatch, settings: DenseSettings, _proxies: object = None, _rng: object = None
) -> Losses:
    """SigLoss of all valid pixels of the batch, in shares of the images."""
    truth = maps_of(targets).float()
    valid = is_valid(truth, settings)
    counts = valid.sum(dim=(1, 2)).float()
    n = counts.sum()
    metres = at_size(metres_of(outputs, settings), truth.shape[1:])[:, 0]
    apart = (torch.log(metres + _EPS) - torch.log(truth.where(valid, 1.0) + _EPS)).where(valid, 0.0)
    mean = apart.sum() / n.clamp(min=1)
    variance = (apart - mean).where(valid, 0.0).square().sum() / (n - 1).clamp(min=1)
    value = (variance + MEAN_SHARE * mean.square()).clamp(min=_LEAST).sqrt()
    return Losses(value * counts, counts)


def records(
    outputs: Outputs, natives: Sequence[NativeTarget], settings: DenseSettings, _n_classes: int
) -> list[Errors]:
    """The sums of each image, at its label's own size.

    Raises:
        UsageError: an Eigen crop of labels that are not 480 x 640.
    """
    metres = metres_of(outputs, settings)
    found = []
    for of_image, native in zip(metres, natives, strict=True):
        truth = label_map(native, settings.eval_px)
        predicted = _clamped(of_image[None], settings, truth.shape)[0]
        valid = is_valid(torch.tensor(truth), settings).numpy()
        if settings.eigen_crop:
            valid = valid & eigen_crop(truth.shape)
        found.append(_sums(predicted[valid].astype(np.float64), truth[valid].astype(np.float64)))
    return found


def recount(records: Sequence[Errors], _classes: Sequence[str], _settings: DenseSettings) -> Recount:
    """The metrics of one seed in any resample; NaN where it has no valid pixel."""
    n_pixels = np.array([float(record.n_pixels) for record in records])
    squares = np.array([record.square for record in records])
    measured = (n_pixels > 0).astype(np.float64)
    columns = np.array([[record.relative, record.log10, *record.within] for record in records])
    of_image = columns / n_pixels.clip(1)[:, None]
    roots = np.sqrt(squares / n_pixels.clip(1))
    names = ("abs_rel", "log10", "delta1", "delta2", "delta3")

    def count(weights: Weights) -> dict[str, Float[np.ndarray, " R"]]:
        weights = weights.astype(np.float64)
        images = weights @ measured
        means = weights @ of_image
        return {
            "rmse_pooled": np.sqrt(ratio(weights @ squares, weights @ n_pixels)),
            "rmse_image": ratio(weights @ roots, images),
        } | {name: ratio(total, images) for name, total in zip(names, means.T, strict=True)}

    return count


def notes(records: Sequence[Errors], _classes: Sequence[str], _settings: DenseSettings) -> dict[str, str]:
    """By metric: how many images it leaves out."""
    n = sum(record.n_pixels == 0 for record in records)
    return {"rmse_image": f"{n} of {len(records)} images have no valid depth and are left out"} if n else {}


def details(records: Sequence[Sequence[Errors]], _classes: Sequence[str], _settings: DenseSettings) -> dict[str, Any]:
    """Which depths were measured: an error is small or large beside their spread."""
    n = sum(record.n_pixels for record in records[0])
    if n == 0:
        return {"depths": {"pixels": 0}}
    mean = sum(record.truth for record in records[0]) / n
    square = sum(record.truth_square for record in records[0]) / n
    return {"depths": {"pixels": n, "mean": mean, "std": float(np.sqrt(max(0.0, square - mean**2)))}}


def decode(outputs: Outputs, settings: DenseSettings, size: Sequence[int]) -> Depths:
    """Metres, in float32."""
    return _clamped(metres_of(outputs, settings), settings, size)


def metres_of(outputs: Outputs, settings: DenseSettings) -> Float[Tensor, "B 1 Ho Wo"]:
    """The depth that outputs mean, in float32."""
    outputs = outputs.float().relu()
    if settings.depth_as == "direct":
        return outputs + settings.min_depth
    weights = outputs + _BIN_FLOOR
    depths = torch.linspace(settings.min_depth, settings.max_depth, outputs.shape[1], device=outputs.device)
    return (weights * depths[:, None, None]).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)


def is_valid(depth: Float[Tensor, "*shape"], settings: DenseSettings) -> Bool[Tensor, "*shape"]:
    """Where there is a depth, and within the range (both ends excluded, as AdaBins and DINOv3 measure)."""
    return depth.isfinite() & (depth > settings.min_depth) & (depth < settings.max_depth)


def eigen_crop(size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
    """What of an image of NYU is measured."""
    whole, rows, columns = _EIGEN
    if tuple(size) != whole:
        raise UsageError(
            f"the Eigen crop is of depths of 480 x 640 pixels, not of {size[0]} x {size[1]}",
            where="eigen_crop",
            remedy="measure NYU at its own size (no eval_px), or leave the crop out",
        )
    inside = np.zeros(whole, bool)
    inside[rows, columns] = True
    return inside


def _clamped(metres: Float[Tensor, "B 1 Ho Wo"], settings: DenseSettings, size: Sequence[int]) -> Depths:
    """At the label's size, within the range; what is no number is the nearest depth (AdaBins' evaluation)."""
    near, far = settings.min_depth, settings.max_depth
    found = at_size(metres, size)[:, 0].nan_to_num(nan=near, posinf=far, neginf=near)
    return np.asarray(found.clamp(near, far).cpu().numpy())


def _sums(predicted: Shaped[np.ndarray, " n"], truth: Shaped[np.ndarray, " n"]) -> Errors:
    apart = predicted - truth
    quotient = np.maximum(predicted / truth, truth / predicted)
    return Errors(
        n_pixels=len(truth),
        square=float(np.square(apart).sum()),
        relative=float((np.abs(apart) / truth).sum()),
        log10=float(np.abs(np.log10(predicted) - np.log10(truth)).sum()),
        within=np.array([(quotient < 1.25**power).sum() for power in (1, 2, 3)], np.float64),
        truth=float(truth.sum()),
        truth_square=float(np.square(truth).sum()),
    )
