"""Areas and means of one seed against scikit-learn: the same bits."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from loffta.tasks import classification, multi_label
from loffta.tasks.curves import average_precision, roc_area
from loffta.tasks.ranking import log_odds


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_curves_equal_sklearn(decimals):
    """From two images on, with ties and without, with few positives and with many."""
    rng = np.random.default_rng(decimals)
    for n_images in [2, 3, 4, 5, *rng.integers(6, 300, 60)]:
        positive = rng.random(n_images) < rng.uniform(0.05, 0.95)
        positive[:2] = True, False
        scores = (rng.normal(size=n_images) + positive).round(decimals).astype(np.float32)
        assert roc_area(scores, positive) == roc_auc_score(positive, scores)
        assert average_precision(scores, positive) == average_precision_score(positive, scores)
    assert average_precision(scores, np.ones(n_images, bool)) == 1.0, "no negative image: nothing is ranked wrongly"


@pytest.mark.parametrize("n_classes", [2, 3, 19])
def test_means_over_classes_equal_sklearn(n_classes):
    rng = np.random.default_rng(n_classes)
    logits = rng.normal(size=(211, n_classes)).round(1).astype(np.float32)
    labels = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=211 - n_classes)])
    found = classification.metrics(logits, labels, [f"class {i}" for i in range(n_classes)])
    assert found["f1"] == f1_score(labels, logits.argmax(axis=1), average="macro")
    one_hot, odds = labels[:, None] == np.arange(n_classes), log_odds(logits)
    some = slice(1, None) if n_classes == 2 else slice(None)
    assert found["roc_auc"] == roc_auc_score(one_hot[:, some], odds[:, some], average="macro")

    has_class = (rng.random(logits.shape) < 0.3).astype(np.int8)
    has_class[:, 0] = 0
    found = multi_label.metrics(logits, has_class, [""] * n_classes)
    assert found["f1"] == f1_score(has_class, logits >= 0, average="macro", zero_division=np.nan)
    others = range(1, n_classes)
    assert found["roc_auc"] == np.mean([roc_auc_score(has_class[:, c], logits[:, c]) for c in others])
    assert found["map"] == np.mean([average_precision_score(has_class[:, c], logits[:, c]) for c in others])
