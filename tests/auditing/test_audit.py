"""Planted faults are found: 3 % wrong labels and 2 % copies among the digits, as well as by scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.preprocessing import StandardScaler

from loffta.auditing.audit import audit
from loffta.auditing.judges import UNUSED, by_logreg, by_neighbours
from loffta.auditing.vectors import Vectors, choose_vectors
from loffta.errors import LofftaError, UsageError
from loffta.probes.knn import Nearest
from loffta.store.table import ImageTable
from tests.auditing.planted import make, plant, with_labels
from tests.caches import FakeStore, make_cache, make_table
from tests.tasks.test_confident import paper


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted") / "cache")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """200 digits and 10 copies, no wrong labels."""
    return plant(tmp_path_factory.mktemp("small") / "cache", n=200, wrong=0.0, copied=0.05)


@pytest.fixture(scope="module")
def found(planted):
    return audit(planted.cache, device="cpu")


def test_every_copy_is_found_and_nothing_else(planted, found):
    """Half of them have the same bytes, half are altered by noise of 2 % of the range."""
    assert {frozenset(group.rows) for group in found.copies} == {frozenset(pair) for pair in planted.copies}
    assert len(planted.copies) == 14
    assert all(group.leaks and set(group.splits) == {"train", "test"} for group in found.copies)
    altered = {copy for i, (_, copy) in enumerate(planted.copies) if i % 2}
    for group in found.copies:
        assert (group.similarity < 1 - 1e-6) == (group.rows[1] in altered)
    assert found.leaks == found.copies


def test_bytes_that_are_the_same_are_copies_whatever_the_features_say(tmp_path):
    """Two digits that differ, of which the done files say the same; --near 0 leaves such pairs alone."""
    pixels = load_digits().data[:40].astype(np.float32)
    pixels[20] = pixels[10] * 1.01 + 0.1
    hashes = [f"{i:032x}" for i in range(40)]
    hashes[30] = hashes[3]
    table = ImageTable("d", [f"{i}.png" for i in range(40)], np.full(40, 9), ["all"] * 40, np.full(40, -1), ())
    cache = make(tmp_path / "cache", table, pixels, hashes)
    assert {group.rows for group in audit(cache, device="cpu").copies} == {(3, 30), (10, 20)}
    assert [group.rows for group in audit(cache, near=0.0, device="cpu").copies] == [(3, 30)]


def reference(planted):
    """Wrong labels by scikit-learn's probabilities on five folds and the paper's rule, as loops."""
    pixels = load_digits().data[:700]
    labels = planted.cache.table.labels[:700]
    folds = PredefinedSplit(np.arange(700) % 5)
    scaled = StandardScaler().fit_transform(pixels / np.linalg.norm(pixels, axis=1, keepdims=True))
    model = LogisticRegression(C=0.1, max_iter=500)
    chances = cross_val_predict(model, scaled, labels, cv=folds, method="predict_proba")
    return [row for row, _ in paper(chances.tolist(), labels.tolist())]


def precision_recall(rows, wrong):
    hits = wrong[rows].sum()
    return hits / len(rows), hits / wrong.sum()


def test_wrong_labels_are_found_as_well_as_by_scikit_learn(planted, found):
    precision, recall = precision_recall([error.row for error in found.label_errors], planted.wrong)
    theirs = precision_recall(reference(planted), planted.wrong)
    assert planted.wrong.sum() == 21
    assert precision >= max(0.8, theirs[0] - 0.05)
    assert recall >= max(0.7, theirs[1] - 0.05)
    right = [error.suggested == planted.truth[error.row] for error in found.label_errors if planted.wrong[error.row]]
    assert np.mean(right) > 0.9
    assert found.n_judged == 714
    assert found.agreement == pytest.approx(0.95, abs=0.02)  # 3 % are wrong


def test_noise_is_an_outlier(tmp_path):
    rng = np.random.default_rng(0)
    pixels = load_digits().data[:300].astype(np.float32)
    pixels[[17, 200]] = rng.permuted(pixels[[17, 200]], axis=1)
    table = ImageTable("digits", [f"{i}.png" for i in range(300)], np.full(300, 9), ["all"] * 300, np.full(300, -1), ())
    found = audit(make(tmp_path / "cache", table, pixels), device="cpu")
    assert {17, 200} <= {outlier.row for outlier in found.outliers}
    assert len(found.outliers) < 10
    assert found.outliers[0].distance == max(outlier.distance for outlier in found.outliers)


def test_typical_images_are_nearest_to_their_mean(planted, found):
    pixels = load_digits().data[:700]
    pixels = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    for label in (0, 7):
        rows = [row for row in np.flatnonzero(planted.cache.table.labels == label) if row < 700]
        cosines = pixels[rows] @ pixels[rows].mean(axis=0)
        ours = [row for row in found.typical[label] if row < 700]  # copies moved the mean a little
        best = [rows[i] for i in np.argsort(-cosines)[:12]]
        assert len(found.typical[label]) == 8
        assert set(ours) <= set(best)


def test_logreg_out_of_fold_is_scikit_learns(planted):
    """Every image by the model that the other folds gave; unused ones are learnt nowhere."""
    n = 160
    rows, labels = np.arange(n), planted.cache.table.labels[:n].copy()
    folds = np.arange(n) % 2
    folds[::10] = UNUSED
    labels[::10] = 0
    chosen = choose_vectors(planted.cache, [], "mean")
    with Vectors(chosen, rows, torch.device("cpu")) as vectors:
        ours = by_logreg(vectors, labels, folds, 10)
        x = vectors.block(0, n).numpy().astype(np.float64)
    losses = []
    for c in (0.1, 1.0):
        theirs = np.zeros((n, 10))
        for fold in range(2):
            learnt, asked = (folds != fold) & (folds != UNUSED), folds == fold
            scaler = StandardScaler().fit(x[learnt])
            model = LogisticRegression(C=c, max_iter=500).fit(scaler.transform(x[learnt]), labels[learnt])
            theirs[asked] = model.predict_proba(scaler.transform(x[asked]))
        used = folds != UNUSED
        losses.append((-np.log(theirs[np.flatnonzero(used), labels[used]]).mean(), theirs[used]))
    best = min(losses, key=lambda found: found[0])[1]
    assert np.abs(ours[used] - best).max() < 0.1  # a thousandth of the objective
    assert np.abs(ours[used] - best).mean() < 0.01


def test_copies_and_unlabelled_images_have_no_vote():
    nearest = Nearest(torch.tensor([[0.9, 0.8, 0.7]] * 4), torch.tensor([[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 1, 0]]))
    shares = by_neighbours(nearest, np.array([0, 0, -1, 1]), np.array([0, 0, 2, 3]), 2)
    np.testing.assert_allclose(shares[0], [0, 1])  # image 1 is its copy, 2 has no label: image 3 alone
    weights = np.exp(np.array([0.9, 0.8, 0.7]) / 0.07)
    np.testing.assert_allclose(shares[2], [1 - weights[0] / weights.sum(), weights[0] / weights.sum()], rtol=1e-5)


def test_a_wrong_label_that_both_copies_have_is_still_found(small):
    """Were copies in several folds, each would vouch for the other."""
    original, copy = small.copies[0]
    labels = small.cache.table.labels.copy()
    labels[[original, copy]] = (small.truth[original] + 5) % 10
    found = audit(with_labels(small.cache, labels=labels), device="cpu")
    assert {original, copy} <= {error.row for error in found.label_errors}


first_digits = load_digits().target[:200]
TWO_A_CLASS = np.full(210, -1)
for digit in range(10):
    TWO_A_CLASS[np.flatnonzero(first_digits == digit)[:2]] = digit
NOT_DONE = {
    "no label": ({"labels": np.full(210, -1)}, "no image has a label"),
    "one class": ({"labels": np.zeros(210, np.int64)}, "210 labels of 1 class: fewer than two classes"),
    "several classes": ({"label_sets": [(1, 2)] * 210}, "the labels are multi-label"),
    "numbers": ({"values": np.linspace(0, 1, 210)}, "the labels are regression"),
    "few": ({"labels": np.array([0, 1] + [-1] * 208)}, "no class has more than 1 label, and a judge"),
    "two a class": ({"labels": TWO_A_CLASS}, "no class has more than 2 labels, and a judge of each of the 5 folds"),
    "few classes": (
        {"labels": np.array([0] * 5 + [1] + [-1] * 204)},
        "6 labels of 2 classes: fewer than two classes have images in two of the 5 folds",
    ),
    "by chance": ({"labels": np.arange(210) * 7 % 10}, "judges that have not learnt them agree with "),
}
TYPICAL = {
    "no label": set(),
    "one class": {0},
    "several classes": {1, 2},
    "numbers": set(),
    "few": {0, 1},
    "few classes": {0, 1},
}


@pytest.mark.parametrize("case", NOT_DONE)
def test_what_does_not_apply_is_told_and_the_rest_is_done(small, case):
    fields, why = NOT_DONE[case]
    found = audit(with_labels(small.cache, **fields), device="cpu")
    assert found.not_done["label_errors"].startswith(why)
    assert found.label_errors == ()
    assert found.agreement is None
    assert len(found.copies) == 10
    assert set(found.typical) == TYPICAL.get(case, set(range(10)))
    assert found.as_json()["not_done"] == found.not_done


def test_a_class_of_one_image_is_not_judged(small):
    labels = small.cache.table.labels.copy()
    labels[5] = 10
    classes = (*small.cache.table.classes, "rare")
    found = audit(with_labels(small.cache, labels=labels, classes=classes), device="cpu")
    assert found.n_judged == 209
    assert 5 not in {error.row for error in found.label_errors}
    assert found.typical[10] == (5,)


def test_labels_that_differ_between_copies_are_told(small):
    original, _ = small.copies[2]
    labels = small.cache.table.labels.copy()
    labels[original] = (labels[original] + 1) % 10
    first = audit(with_labels(small.cache, labels=labels), device="cpu").copies[0]
    assert original in first.rows
    assert first.labels_differ


def test_bad_images_are_left_out(tmp_path):
    pixels = load_digits().data[:40].astype(np.float32)
    pixels[30] = pixels[3]
    table = ImageTable("d", [f"{i}.png" for i in range(40)], np.full(40, 9), ["all"] * 40, np.full(40, -1), ())
    found = audit(make(tmp_path / "cache", table, pixels, bad=(0, 7)), device="cpu")
    assert len(found.rows) == 38
    assert [group.rows for group in found.copies] == [(3, 30)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": 1.0}, "--near 1.0 is no fraction"),
        ({"near": -0.1}, "--near -0.1 is no fraction"),
        ({"folds": 1}, "1 folds leave nothing to learn from"),
        ({"features": ["pixel"]}, "did you mean"),
        ({"device": "gpu"}, "gpu"),
    ],
)
def test_options_that_cannot_be_used(small, options, message):
    with pytest.raises(UsageError, match=message):
        audit(small.cache, **{"device": "cpu"} | options)


def test_one_image_cannot_be_compared(tmp_path):
    table = make_table([0], ["train"])
    cache = make_cache(tmp_path / "cache", table, [FakeStore("one", {"last": np.ones((1, 2, 2, 4))})])
    with pytest.raises(LofftaError, match="nothing to compare it with"):
        audit(cache, device="cpu")


def test_two_images_can(tmp_path):
    grids = np.ones((2, 2, 2, 4))
    cache = make_cache(tmp_path / "cache", make_table([0, 1], ["train", "test"]), [FakeStore("two", {"last": grids})])
    found = audit(cache, device="cpu")
    assert [group.rows for group in found.copies] == [(0, 1)]
    assert "no class has more than 1 label" in found.not_done["label_errors"]


def test_units_that_are_missing_are_an_error_or_left_out(tmp_path):
    grids = np.random.default_rng(0).normal(size=(24, 1, 1, 4))
    cache = make_cache(
        tmp_path / "c", make_table([0, 1] * 12, ["t"] * 24), [FakeStore("a", {"x": grids}, missing=(1,))]
    )
    with pytest.raises(LofftaError, match="--partial"):
        audit(cache, device="cpu")
    assert len(audit(cache, partial=True, device="cpu").rows) == 16


def test_nothing_of_the_cache_changes(small):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in small.cache.paths.root.rglob("*") if p.is_file()}
    audit(replace(small.cache), device="cpu")
    assert {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in small.cache.paths.root.rglob("*") if p.is_file()
    } == before
