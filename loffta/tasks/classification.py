"""Classification: one class per image; cross-entropy, and metrics of the chosen class and of the ranking.

In:  logits of a head, probabilities [S, B, C] of S seeds, labels of the image set.   Out: the loss for `train`, metrics
(fractions 0-1, kappa from -1) and what becomes of them in resamples for `measure`.

    top1               share of images whose class has the highest probability
    top5               ... is among the five highest; only with more than 5 classes
    balanced_accuracy  mean recall of the classes that occur in the labels
    macro_recall       mean recall of all classes of the image set; one that does not occur counts as 0
    kappa              Cohen's, with quadratic weights: for classes in an order (grades of a disease)
    roc_auc            of class 1 where there are two, else mean over classes of one against the rest; only where every
                       class occurs in the labels
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loffta.tasks.bootstrap import Weights, mean_of_defined, ratio
from loffta.tasks.ranking import RocAreas
from loffta.tokens import Logits

Classes: TypeAlias = Int[np.ndarray, " B"]

N_TOP = 5
MATRIX_CLASSES = 50  # results keep the confusion matrix of up to so many classes
N_PAIRS = 30  # of more classes they keep the most frequent confusions


def loss(logits: Logits, labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each image, no label smoothing."""
    return F.cross_entropy(logits, labels, reduction="none")


def activation(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Probabilities of the classes: softmax, in float32."""
    return logits.float().softmax(dim=-1)


def decide(scores: Float[np.ndarray, "*batch C"]) -> Int[np.ndarray, "*batch"]:
    """The class with the highest score; of equals the first."""
    return np.asarray(scores.argmax(axis=-1))


def metrics(scores: Float[np.ndarray, "B C"], labels: Classes) -> dict[str, float]:
    """The metrics of one seed; those that these labels do not define are left out, see `notes`."""
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    n_classes = scores.shape[1]
    predicted = decide(scores)
    right = predicted == labels
    recalls = ratio(np.bincount(labels, right, n_classes), np.bincount(labels, minlength=n_classes))
    found = {"top1": right.mean()}
    if n_classes > N_TOP:
        found["top5"] = among_top(scores, labels, N_TOP).mean()
    found["balanced_accuracy"] = np.nanmean(recalls)
    found["macro_recall"] = np.nansum(recalls) / n_classes
    if _has_kappa(labels):
        found["kappa"] = cohen_kappa_score(labels, predicted, labels=range(n_classes), weights="quadratic")
    if _has_roc_auc(labels, n_classes):
        one_hot = labels[:, None] == np.arange(n_classes)
        found["roc_auc"] = roc_auc_score(_ranked(one_hot), _ranked(scores), average="macro")
    return {name: float(value) for name, value in found.items()}


def among_top(scores: Float[np.ndarray, "B C"], labels: Classes, k: int) -> Bool[np.ndarray, " B"]:
    """Whether the label has one of the k highest scores; of equal scores the first class is the higher."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    n_higher = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return np.asarray(n_higher < k)


def notes(labels: Classes, classes: Sequence[str]) -> dict[str, str]:
    """By metric: why it is left out, or what to know before reading it."""
    occurring = set(labels.tolist())
    absent = [name for i, name in enumerate(classes) if i not in occurring]
    found = {}
    if absent:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        missing = f"{len(absent)} of {len(classes)} classes do not occur in the labels ({names})"
        found["macro_recall"] = f"{missing} and count as 0"
        found["roc_auc"] = f"left out: {missing}"
    elif len(classes) == 1:
        found["roc_auc"] = "left out: there is one class only"
    if not _has_kappa(labels):
        found["kappa"] = "left out: one class only occurs in the labels"
    return found


def resampled(
    scores: Float[np.ndarray, "S B C"], labels: Classes, blocks: Iterable[Weights]
) -> dict[str, Float[np.ndarray, " R"]]:
    """Every metric, mean over seeds, in every resample.

    A class that a resample lacks is left out of its means, also of macro recall: only classes that the labels lack
    count as 0.
    """
    n_classes = scores.shape[2]
    occurring = np.unique(labels)
    of_class = (labels[:, None] == occurring).astype(np.float32)
    right = (decide(scores) == labels).mean(axis=0, dtype=np.float32)
    right_of_class = right[:, None] * of_class
    shares = {"top1": right}
    if n_classes > N_TOP:
        shares["top5"] = np.mean([among_top(s, labels, N_TOP) for s in scores], axis=0, dtype=np.float32)
    kappa = Kappa(decide(scores), labels, n_classes) if _has_kappa(labels) else None
    areas = RocAreas(_ranked(scores), _ranked(of_class > 0)) if _has_roc_auc(labels, n_classes) else None
    found: dict[str, list[Float[np.ndarray, " R"]]] = {}
    for weights in blocks:
        recall = mean_of_defined(ratio(weights @ right_of_class, weights @ of_class))
        values = {name: weights @ share / len(labels) for name, share in shares.items()}
        values |= {"balanced_accuracy": recall, "macro_recall": recall * len(occurring) / n_classes}
        if kappa is not None:
            values["kappa"] = kappa(weights)
        if areas is not None:
            values["roc_auc"] = mean_of_defined(areas(weights))
        for name, of_block in values.items():
            found.setdefault(name, []).append(of_block)
    return {name: np.concatenate(of_blocks) for name, of_blocks in found.items()}


class Kappa:
    """Quadratic kappa, mean over seeds, of any resample, from first and second moments alone.

    1 - E[(y - p)^2] / E'[(y - p)^2], where E' draws label y and prediction p apart: E[y^2] + E[p^2] - 2 E[y] E[p].
    """

    def __init__(self, predicted: Int[np.ndarray, "S B"], labels: Classes, n_classes: int) -> None:
        """Classes are put into 0 ... 1: kappa has no scale."""
        y, p = (values / max(n_classes - 1, 1) for values in (labels, predicted))
        columns = [y, y**2, *(column for q in p for column in (q, q**2, (y - q) ** 2))]
        self._columns = np.stack(columns, axis=1) / len(labels)  # float64: differences of nearly equal moments

    def __call__(self, weights: Weights) -> Float[np.ndarray, " R"]:
        """NaN where labels and predictions of a resample are one and the same class."""
        moments = weights @ self._columns
        y, y2 = moments[:, :1], moments[:, 1:2]
        p, p2, apart = (moments[:, i::3] for i in (2, 3, 4))
        by_chance = y2 + p2 - 2 * y * p
        return mean_of_defined(1 - ratio(apart, np.where(by_chance > 1e-13, by_chance, 0.0)))


def details(scores: Float[np.ndarray, "S B C"], labels: Classes, classes: Sequence[str]) -> dict[str, Any]:
    """What is confused with what, counts summed over the seeds; a seed's own follow from predictions.parquet.

    Returns:
        confusion, counts [C, C] of label by prediction; or of many classes confused_pairs, the most frequent first.
    """
    predicted = decide(scores)
    pairs = np.tile(labels, len(predicted)) * len(classes) + predicted.reshape(-1)
    cells, n_images = np.unique(pairs, return_counts=True)
    if len(classes) <= MATRIX_CLASSES:
        counts = np.zeros(len(classes) ** 2, dtype=np.int64)
        counts[cells] = n_images
        return {"confusion": {"classes": list(classes), "counts": counts.reshape(len(classes), -1).tolist()}}
    rows, columns = np.divmod(cells, len(classes))
    wrong = np.flatnonzero(rows != columns)
    worst = wrong[np.argsort(-n_images[wrong], kind="stable")][:N_PAIRS]
    of_class = np.bincount(labels, minlength=len(classes)) * len(predicted)
    return {
        "confused_pairs": [
            {
                "label": classes[rows[i]],
                "predicted": classes[columns[i]],
                "count": int(n_images[i]),
                "of": int(of_class[rows[i]]),
            }
            for i in worst
        ]
    }


def _has_kappa(labels: Classes) -> bool:
    return len(np.unique(labels)) > 1


def _has_roc_auc(labels: Classes, n_classes: int) -> bool:
    return 1 < n_classes == len(np.unique(labels))


def _ranked(by_class: Any) -> Any:
    """The columns that ROC areas are of: of two classes the positive one alone."""
    return by_class[..., 1:] if by_class.shape[-1] == 2 else by_class
