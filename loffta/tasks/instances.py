"""Telling instances apart: an embedding for every pixel, near to that of its own object and far from all others.

In:  outputs [B, D, Ho, Wo], maps of instances (0 none), in training also where each image's objects begin among all of
the training, and a learnt proxy [D] for every one of these.   Out: the loss for `train`; of each image how well groups
of its pixels are its objects. See `dense` for who calls.

    ari  adjusted Rand index of the pixels of objects, mean over the images that have enough objects (-0.5 to 1; 0 is
         chance: Hubert and Arabie, Journal of Classification 2, 1985; scikit-learn)

Outputs and labels are measured at 112 x 112 pixels (or `eval_px`): k-means, the best of 15 starts, puts the pixels that
belong to an object into as many groups as there are objects (the release of DeAP). An image counts that has at least
`min_instances` objects of `min_instance_area` pixels of its own label: 2 and 0; the paper's images have 3 of 9,216.

The loss is cross-entropy of a pixel's products with the proxies, the mean over pixels that belong to an object; of each
image `instance_pixels` are drawn. With more than `sampled_instances` proxies it is a sampled softmax: the batch's own
objects are all there, of the others some are drawn evenly, without replacement. Each of these stands for many, so the
logarithm of how many is added to its logit: the expected count of TensorFlow's candidate sampling (Jean et al., ACL
2015, section 3), which makes the sum of the exponentials right on the average.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from loffta.shapes import TargetBatch
from loffta.targets import IGNORE_16, NO_INSTANCE, DenseSettings, NativeTarget, Readout
from loffta.tasks.bootstrap import Weights, ratio
from loffta.tasks.pixels import Losses, Outputs, Recount, at_size, label_map, maps_of

EVAL_PX = 112
N_STARTS = 15


class Grouping(NamedTuple):
    """One image."""

    n_instances: int  # that are measured
    ari: float  # NaN where they are too few


def readout(_n_classes: int, settings: DenseSettings) -> Readout:
    """An embedding."""
    return Readout((settings.embedding_dim,))


def loss(
    outputs: Outputs,
    targets: TargetBatch,
    settings: DenseSettings,
    proxies: Float[Tensor, "n D"],
    rng: torch.Generator | None = None,
) -> Losses:
    """Cross-entropy of the pixels of objects; without `rng` of all pixels, and against all instances."""
    assert targets.first_instance is not None
    numbers = maps_of(targets).to(torch.int64)
    embedded = at_size(outputs, numbers.shape[1:]).flatten(2).transpose(1, 2)
    belongs = ((numbers != NO_INSTANCE) & (numbers != IGNORE_16)).flatten(1)
    instances = numbers.flatten(1) - 1 + targets.first_instance[:, None]
    if rng is not None and settings.instance_pixels is not None:
        pixels, belongs = _draw_pixels(belongs, settings.instance_pixels, rng)
        embedded = embedded.gather(1, pixels[:, :, None].expand(-1, -1, embedded.shape[2]))
        instances = instances.gather(1, pixels)
    image, pixel = belongs.nonzero(as_tuple=True)
    with torch.autocast(outputs.device.type, enabled=False):
        losses = instance_losses(
            embedded[image, pixel], instances[image, pixel], proxies.float(), settings.sampled_instances, rng
        )
    sums = torch.zeros(len(outputs), device=outputs.device).index_add(0, image, losses)
    return Losses(sums, belongs.sum(dim=1).float())


def instance_losses(
    embedded: Float[Tensor, "N D"],
    instances: Int64[Tensor, " N"],
    proxies: Float[Tensor, "n D"],
    n_sampled: int,
    rng: torch.Generator | None,
) -> Float[Tensor, " N"]:
    """Cross-entropy of each pixel; exact where there are no more than `n_sampled` instances, or no `rng`."""
    n = len(proxies)
    if rng is None or n <= n_sampled:
        return F.cross_entropy(embedded @ proxies.T, instances, reduction="none")
    present, place = torch.unique(instances, return_inverse=True)
    absent = torch.ones(n, dtype=torch.bool, device=proxies.device).index_fill(0, present, False).nonzero()[:, 0]
    n_drawn = min(len(absent), max(1, n_sampled - len(present)))
    drawn = absent[torch.randperm(len(absent), generator=rng, device=absent.device)[:n_drawn]]
    logits = embedded @ proxies[torch.cat([present, drawn])].T
    stands_for = torch.zeros(len(present) + n_drawn, device=proxies.device)
    stands_for[len(present) :] = math.log(max(1, len(absent)) / max(1, n_drawn))
    return F.cross_entropy(logits + stands_for, place, reduction="none")


def records(
    outputs: Outputs, natives: Sequence[NativeTarget], settings: DenseSettings, _n_classes: int
) -> list[Grouping]:
    """The grouping of each image."""
    px = settings.eval_px or EVAL_PX
    embedded = at_size(outputs, (px, px)).nan_to_num().permute(0, 2, 3, 1).cpu().numpy()
    found = []
    for of_image, native in zip(embedded, natives, strict=True):
        measured = _measured(native, settings)
        numbers = label_map(native, px)
        belongs = np.isin(numbers, measured)
        n_shown = len(np.unique(numbers[belongs]))
        enough = len(measured) >= settings.min_instances and n_shown > 1
        ari = group(of_image[belongs], numbers[belongs], n_shown) if enough else np.nan
        found.append(Grouping(len(measured), ari))
    return found


def group(embedded: Float[np.ndarray, "N D"], numbers: Shaped[np.ndarray, " N"], n_groups: int) -> float:
    """The adjusted Rand index of k-means' groups and the objects; on one thread, for so few points wait for more."""
    from sklearn.cluster import KMeans  # seconds that instances alone need
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # pixels that are all the same make fewer groups
        groups = KMeans(n_groups, n_init=N_STARTS, random_state=0).fit_predict(embedded)
    return float(adjusted_rand_score(numbers, groups))


def recount(records: Sequence[Grouping], _classes: Sequence[str], _settings: DenseSettings) -> Recount:
    """The metric of one seed in any resample; NaN where no image of it has enough objects."""
    values = np.array([record.ari for record in records])
    counted = (~np.isnan(values)).astype(np.float64)

    def count(weights: Weights) -> dict[str, Float[np.ndarray, " R"]]:
        weights = weights.astype(np.float64)
        return {"ari": ratio(weights @ np.nan_to_num(values), weights @ counted)}

    return count


def notes(records: Sequence[Grouping], _classes: Sequence[str], settings: DenseSettings) -> dict[str, str]:
    """By metric: how many images it leaves out."""
    n = sum(np.isnan(record.ari) for record in records)
    what = f"{n} of {len(records)} images have fewer than {settings.min_instances} objects and are left out"
    return {"ari": what} if n else {}


def details(records: Sequence[Sequence[Grouping]], _classes: Sequence[str], _settings: DenseSettings) -> dict[str, Any]:
    """How many images and objects are measured."""
    counted = [record.n_instances for record in records[0] if not np.isnan(record.ari)]
    return {"measured": {"images": len(counted), "instances": sum(counted)}}


def decode(outputs: Outputs, _settings: DenseSettings, size: Sequence[int]) -> Float[np.ndarray, "B D h w"]:
    """The embeddings, in float32."""
    return np.asarray(at_size(outputs, size).cpu().numpy())


def _draw_pixels(
    belongs: Bool[Tensor, "B N"], n_drawn: int, rng: torch.Generator
) -> tuple[Int64[Tensor, "B k"], Bool[Tensor, "B k"]]:
    """Pixels of each image, evenly drawn among those that belong, and which of them do where these are fewer."""
    chance = torch.rand(belongs.shape, generator=rng, device=belongs.device).masked_fill(~belongs, -1.0)
    value, pixels = chance.topk(min(n_drawn, chance.shape[1]))
    return pixels, value >= 0


def _measured(native: NativeTarget, settings: DenseSettings) -> Int64[np.ndarray, " k"]:
    """The objects of a label that are large enough."""
    assert native.map is not None
    numbers, areas = np.unique(native.map, return_counts=True)
    objects = (numbers != NO_INSTANCE) & (numbers != IGNORE_16) & (areas >= settings.min_instance_area)
    return np.asarray(numbers[objects].astype(np.int64))
