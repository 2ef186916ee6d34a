"""Classification: one class per image; cross-entropy, and metrics of the chosen class and of the ranking.

In:  logits [S, B, C] of the heads of S seeds, labels and classes of the image set.   Out: the loss for `train`, metrics
(fractions 0-1, kappa from -1, log-loss in nats) and what becomes of them in resamples for `measure`.

    top1               share of images whose class has the highest logit
    top5               ... is among the five highest; only with more than 5 classes
    balanced_accuracy  mean recall of the classes that occur in the labels
    f1                 mean F1 of the classes that occur in the labels or are predicted (scikit-learn's macro average)
    log_loss           mean cross-entropy of the images: the loss without class weights
    kappa              Cohen's, with quadratic weights; only where all classes are numbers, see `tasks.kappa`
    roc_auc            of class 1 where there are two, else mean over classes of one against the rest, ranked by
                       log-odds; only where every class occurs in the labels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loffta.shapes import Logits
from loffta.tasks.bootstrap import Weights, mean_of_defined
from loffta.tasks.counts import Classes, Counted, Counts, f1_of, recall_of
from loffta.tasks.curves import roc_area
from loffta.tasks.kappa import Kappa, grades_of
from loffta.tasks.ranking import RocAreas, log_odds

N_TOP = 5
MATRIX_CLASSES = 50  # results keep the confusion matrix of up to so many classes
N_PAIRS = 30  # of more classes they keep the most frequent confusions


def loss(logits: Logits, labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each image, no label smoothing."""
    return F.cross_entropy(logits, labels, reduction="none")


def activation(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Probabilities of the classes: softmax, in float32."""
    return logits.float().softmax(dim=-1)


def decide(logits: Float[np.ndarray, "*batch C"]) -> Int[np.ndarray, "*batch"]:
    """The class with the highest logit; of equals the first."""
    return np.asarray(logits.argmax(axis=-1))


def metrics(logits: Float[np.ndarray, "B C"], labels: Classes, classes: Sequence[str]) -> dict[str, float]:
    """The metrics of one seed; those that these labels do not define are left out, see `notes`."""
    n_classes = len(classes)
    predicted = decide(logits)
    counted = Counts(predicted[None], labels, n_classes)(np.ones((1, len(labels)), np.float32))
    found = {"top1": (predicted == labels).mean()}
    if n_classes > N_TOP:
        found["top5"] = among_top(logits, labels, N_TOP).mean()
    found["balanced_accuracy"] = mean_of_defined(recall_of(counted))[0, 0]
    of_class = f1_of(Counted(*(part.astype(np.float64) for part in counted)))[0, 0]
    found["f1"] = of_class[~np.isnan(of_class)].mean()
    found["log_loss"] = _losses(logits, labels).mean()
    grades = grades_of(classes)
    if grades is not None and _has_kappa(labels):
        found["kappa"] = Kappa(predicted[None], labels, grades)(np.ones((1, len(labels)), np.float32))[0]
    if _has_roc_auc(labels, n_classes):
        one_hot = labels[:, None] == np.arange(n_classes)
        curves = zip(_ranked(log_odds(logits)).T, _ranked(one_hot).T, strict=True)
        found["roc_auc"] = np.mean([roc_area(scores, positive) for scores, positive in curves])
    return {name: float(value) for name, value in found.items()}


def among_top(logits: Float[np.ndarray, "B C"], labels: Classes, k: int) -> Bool[np.ndarray, " B"]:
    """Whether the label has one of the k highest logits; of equal logits the first class is the higher."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    n_higher = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return np.asarray(n_higher < k)


def notes(labels: Classes, classes: Sequence[str]) -> dict[str, str]:
    """By metric: why it is left out, or what to know before reading it."""
    occurring = set(labels.tolist())
    absent = [name for i, name in enumerate(classes) if i not in occurring]
    found = {}
    if absent:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        missing = f"{len(absent)} of {len(classes)} classes do not occur in the labels ({names})"
        found["balanced_accuracy"] = f"{missing} and are left out"
        found["roc_auc"] = f"left out: {missing}"
    elif len(classes) == 1:
        found["roc_auc"] = "left out: there is one class only"
    if grades_of(classes) is not None and not _has_kappa(labels):
        found["kappa"] = "left out: one class only occurs in the labels"
    return found


def resampled(
    logits: Float[np.ndarray, "S B C"], labels: Classes, classes: Sequence[str], blocks: Iterable[Weights]
) -> dict[str, Float[np.ndarray, " R"]]:
    """Every metric, mean over seeds, in every resample; a class that a resample lacks is left out of its means."""
    n_classes, predicted = len(classes), decide(logits)
    shares = {"top1": np.mean(predicted == labels, axis=0, dtype=np.float64)}
    if n_classes > N_TOP:
        shares["top5"] = np.mean([among_top(of_seed, labels, N_TOP) for of_seed in logits], axis=0, dtype=np.float64)
    shares["log_loss"] = np.mean([_losses(of_seed, labels) for of_seed in logits], axis=0)
    counts = Counts(predicted, labels, n_classes)
    grades = grades_of(classes)
    kappa = Kappa(predicted, labels, grades) if grades is not None and _has_kappa(labels) else None
    areas = None
    if _has_roc_auc(labels, n_classes):
        one_hot = labels[:, None] == np.arange(n_classes)
        areas = RocAreas((_ranked(log_odds(of_seed)) for of_seed in logits), _ranked(one_hot))
    found: dict[str, list[Float[np.ndarray, " R"]]] = {}
    for weights in blocks:
        counted = counts(weights)
        values = {name: weights @ share / len(labels) for name, share in shares.items()}
        values["balanced_accuracy"] = mean_of_defined(recall_of(counted)).mean(axis=1)
        values["f1"] = mean_of_defined(f1_of(counted)).mean(axis=1)
        if kappa is not None:
            values["kappa"] = kappa(weights)
        if areas is not None:
            values["roc_auc"] = mean_of_defined(areas(weights))
        for name, of_block in values.items():
            found.setdefault(name, []).append(of_block)
    return {name: np.concatenate(of_blocks) for name, of_blocks in found.items()}


def recount(labels: Classes, predicted: Int[np.ndarray, "S B"], _scores: object) -> Callable[[Weights], Any]:
    """`top1` of each seed in any resample [R, S], from predictions that were kept."""
    right = (predicted == labels).astype(np.float32)
    return lambda weights: weights @ right.T / right.shape[1]


def details(logits: Float[np.ndarray, "S B C"], labels: Classes, classes: Sequence[str]) -> dict[str, Any]:
    """What is confused with what, counts summed over the seeds; a seed's own follow from predictions.parquet.

    Returns:
        confusion, counts [C, C] of label by prediction; or of many classes confused_pairs, the most frequent first.
    """
    predicted = decide(logits)
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


def _losses(logits: Float[np.ndarray, "B C"], labels: Classes) -> Float[np.ndarray, " B"]:
    return loss(torch.tensor(logits), torch.tensor(labels)).double().numpy()


def _has_kappa(labels: Classes) -> bool:
    return len(np.unique(labels)) > 1


def _has_roc_auc(labels: Classes, n_classes: int) -> bool:
    return 1 < n_classes == len(np.unique(labels))


def _ranked(by_class: Any) -> Any:
    """The columns that ROC areas are of: of two classes the positive one alone."""
    return by_class[..., 1:] if by_class.shape[-1] == 2 else by_class
