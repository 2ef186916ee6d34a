"""Class means against scikit-learn and loops, on features whose means are far from the origin."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from loffta.probes.ncm import ClassMeans


def draw(n_images=400, n_columns=16, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n_images)
    x = rng.normal(size=(n_images, n_columns)) + rng.normal(size=(n_classes, n_columns))[labels] + 30
    return x.astype(np.float32), labels


def added(x, labels, n_classes, metric, n_batch=64):
    found = ClassMeans(n_classes, x.shape[1], metric)
    for first in range(0, len(x), n_batch):
        found.add(torch.tensor(x[first : first + n_batch]), torch.tensor(labels[first : first + n_batch]))
    return found


def test_euclidean_is_scikit_learns():
    x, labels = draw()
    ours = added(x[:200], labels[:200], 5, "euclidean").fit()
    theirs = NearestCentroid().fit(x[:200].astype(np.float64), labels[:200])
    found = ours(torch.tensor(x)).argmax(dim=1).numpy()
    np.testing.assert_array_equal(found, theirs.predict(x.astype(np.float64)))
    assert 0.5 < (found == labels).mean() < 0.99, "neither chance nor beyond doubt"


def test_cosine_is_the_angle_to_the_mean_of_directions():
    x, labels = draw()
    x = x * np.random.default_rng(1).uniform(0.1, 10, (len(x), 1)).astype(np.float32)
    logits = added(x[:200], labels[:200], 5, "cosine").fit()(torch.tensor(x)).numpy()
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    means = np.stack([unit[:200][labels[:200] == c].mean(axis=0) for c in range(5)])
    cosines = unit @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    np.testing.assert_allclose(logits / np.linalg.norm(x, axis=1)[:, None], cosines, atol=2e-6)
    np.testing.assert_array_equal(logits.argmax(axis=1), cosines.argmax(axis=1))


def test_a_class_without_images_is_never_the_nearest():
    x, labels = draw()
    for metric in ("euclidean", "cosine"):
        some = labels != 2
        logits = added(x[some], labels[some], 6, metric).fit()(torch.tensor(x))
        assert torch.isneginf(logits[:, [2, 5]]).all()
        assert logits[:, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_parts_add_up(metric):
    x, labels = draw()
    whole = added(x, labels, 5, metric).fit()
    parts = added(x[:100], labels[:100], 5, metric).plus(added(x[100:], labels[100:], 5, metric)).fit()
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.bias, parts.bias, rtol=1e-9, atol=1e-9)


def test_columns_of_one_pass():
    x, labels = draw()
    part = added(x, labels, 5, "euclidean").columns(3, 9).fit()
    alone = added(np.ascontiguousarray(x[:, 3:9]), labels, 5, "euclidean").fit()
    torch.testing.assert_close(part.weight, alone.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.bias, alone.bias, rtol=1e-9, atol=1e-9)
