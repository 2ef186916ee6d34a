"""The minimum for every C: against scikit-learn run to the end, and against an objective written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from loffta.probes import logreg
from loffta.probes.held import Holder
from loffta.probes.logreg import LogisticPath
from loffta.probes.maps import PathLosses, softmax_loss
from loffta.probes.moments import Moments

CS = (1e-3, 0.1, 10.0, 100.0)  # on 120 digits, from nearly nothing learnt to perfectly separated


def digits(n_images=120):
    found = load_digits()
    return (found.data[:n_images] / 16 + 3).astype(np.float32), found.target[:n_images]


def solve(paths, x, targets, weights=None, n_batch=70):
    """All paths on one read, as a scan does."""
    while not all(path.is_done for path in paths):
        for first in range(0, len(x), n_batch):
            part = slice(first, first + n_batch)
            for path in paths:
                path.add(torch.tensor(x[part]), targets[part], None if weights is None else weights[part])
        for path in paths:
            path.step()


def moments_of(x):
    found = Moments.empty(x.shape[1])
    found.add(torch.tensor(x))
    return found


def objective(weight, bias, x, targets, c, weights, form):
    """As scikit-learn's documentation has it, in float64."""
    logits = x.astype(np.float64) @ weight + bias
    if form == "softmax":
        losses = np.logaddexp.reduce(logits, axis=1) - (logits * targets).sum(axis=1)
    else:
        losses = (np.logaddexp(0, logits) - logits * targets).sum(axis=1)
    return c * (weights * losses).sum() + 0.5 * (weight**2).sum()


@pytest.mark.parametrize(("standardise", "weighted"), [(False, False), (True, True)])
def test_the_loss_is_scikit_learns_for_every_c(standardise, weighted):
    x, labels = digits()
    targets = F.one_hot(torch.tensor(labels)).double()
    heavy = (len(labels) / (10 * np.bincount(labels)))[labels] * np.where(labels < 3, 2.0, 0.7) if weighted else None
    ours = LogisticPath(moments_of(x), "softmax", 10, cs=CS, standardise=standardise)
    solve([ours], x, targets, None if heavy is None else torch.tensor(heavy))
    scaler = StandardScaler().fit(x.astype(np.float64))
    scale = scaler.scale_ if standardise else np.ones(x.shape[1])
    scaled = (x - scaler.mean_) / scale
    each = np.ones(len(x)) if heavy is None else heavy
    for c, fitted, said in zip(CS, ours.maps, ours.objectives, strict=True):
        theirs = LogisticRegression(C=c, tol=1e-7, max_iter=2000).fit(scaled, labels, sample_weight=heavy)
        best = objective(theirs.coef_.T, theirs.intercept_, scaled, targets.numpy(), c, each, "softmax")
        weight = fitted.weight.numpy() * scale[:, None]
        bias = fitted.bias.numpy() + scaler.mean_ @ fitted.weight.numpy()
        found = objective(weight, bias, scaled, targets.numpy(), c, each, "softmax")
        assert found == pytest.approx(best, rel=1e-4)
        assert said == pytest.approx(found, rel=1e-6)
        chosen = fitted(torch.tensor(x)).argmax(dim=1).numpy()
        assert (chosen == theirs.predict(scaled)).mean() > 0.99


def test_perfect_separation_has_a_minimum():
    """A column that is the label: without the penalty its weight would grow for ever."""
    x = np.array([[-1.0], [-0.5], [0.5], [1.0]], np.float32)
    labels = np.array([0, 0, 1, 1])
    for c in (1.0, 1e4):
        ours = LogisticPath(moments_of(x), "sigmoid", 1, cs=[c])
        solve([ours], x, torch.tensor(labels)[:, None].double())
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x, labels)
        assert ours.maps[0].weight.item() == pytest.approx(theirs.coef_.item(), rel=1e-2)
        best = objective(theirs.coef_.T, theirs.intercept_, x, labels[:, None], c, 1.0, "sigmoid")
        assert ours.objectives[0] == pytest.approx(best, rel=1e-4)
        assert ours.gaps[0] <= 1e-6


def test_several_labels_an_image_are_one_against_the_rest():
    x, labels = digits()
    hot = np.stack([labels == 3, labels % 2 == 0, labels > 6], axis=1).astype(np.float32)
    ours = LogisticPath(moments_of(x), "sigmoid", 3, cs=[0.1, 10.0])
    solve([ours], x, torch.tensor(hot))
    for c, fitted, total in zip((0.1, 10.0), ours.maps, ours.objectives, strict=True):
        alone = 0.0
        for column in range(3):
            theirs = LogisticRegression(C=c, tol=1e-7, max_iter=2000).fit(x - x.mean(0), hot[:, column])
            alone += objective(theirs.coef_.T, theirs.intercept_, x - x.mean(0), hot[:, [column]], c, 1.0, "sigmoid")
        assert total == pytest.approx(alone, rel=1e-4)
        assert fitted.weight.shape == (64, 3)


def test_paths_side_by_side_are_those_alone_and_rows_of_weight_0_are_not_there():
    x, labels = digits()
    targets = F.one_hot(torch.tensor(labels)).double()
    kept = np.arange(120) % 5 != 0
    taps = (slice(0, 30), slice(30, 64))
    together = [LogisticPath(moments_of(x[:, tap]), "softmax", 10, cs=[0.1, 1.0]) for tap in taps]

    def halves(first, last):
        for path, columns in zip(together, taps, strict=True):
            path.add(torch.tensor(x[first:last, columns]), targets[first:last])

    while not all(path.is_done for path in together):
        for first in range(0, 120, 50):
            halves(first, first + 50)
        for path in together:
            path.step()
    for path, columns in zip(together, taps, strict=True):
        alone = LogisticPath(moments_of(x[:, columns]), "softmax", 10, cs=[0.1, 1.0])
        solve([alone], x[:, columns], targets, n_batch=50)
        assert path.objectives == alone.objectives
        assert path.n_passes == alone.n_passes
    left_out = LogisticPath(moments_of(x[kept]), "softmax", 10, cs=[1.0])
    fewer = LogisticPath(moments_of(x[kept]), "softmax", 10, cs=[1.0])
    solve([left_out], x, targets, torch.tensor(kept).double())
    solve([fewer], x[kept], targets[torch.tensor(kept)])
    assert left_out.objectives == pytest.approx(fewer.objectives, rel=1e-5)


def test_validation_losses_choose_among_the_maps():
    x, labels = digits(400)
    labels = (labels + (np.arange(400) % 5 == 0)) % 10  # a fifth of them wrong: who is too sure pays for it
    targets = F.one_hot(torch.tensor(labels)).double()
    ours = LogisticPath(moments_of(x[:150]), "softmax", 10, cs=(1e-4, 0.1, 1.0, 1e3))
    solve([ours], x[:150], targets[:150])
    losses = PathLosses(ours.maps, softmax_loss)
    for first in range(150, 400, 60):
        losses.add(torch.tensor(x[first : first + 60]), targets[first : first + 60])
    slow = [
        objective(each.weight.numpy(), each.bias.numpy(), x[150:], targets[150:].numpy(), 1.0, 1.0, "softmax")
        - 0.5 * float(each.weight.square().sum())
        for each in ours.maps
    ]
    np.testing.assert_allclose(losses.totals, slow, rtol=1e-3)
    assert losses.best == int(np.argmin(slow))
    assert losses.best not in (0, 3), "or there was nothing to choose"


def test_of_many_images_a_sample_is_held_and_the_minimum_is_still_that_of_all(monkeypatch):
    x, labels = digits(900)
    targets = F.one_hot(torch.tensor(labels)).double()
    monkeypatch.setattr(logreg, "n_held", lambda n_features: 4 * n_features)
    held = []
    take = Holder.take

    def watched(self):
        found = take(self)
        held.append(len(found.weights))
        return found

    monkeypatch.setattr(Holder, "take", watched)
    ours = LogisticPath(moments_of(x), "softmax", 10, cs=CS)
    solve([ours], x, targets)
    assert 200 < max(held) < 2 * 4 * 64 + 70, "four rows a column were asked for"
    centred = x - x.mean(axis=0, dtype=np.float64)
    for c, said in zip(CS, ours.objectives, strict=True):
        theirs = LogisticRegression(C=c, tol=1e-6, max_iter=2000).fit(centred, labels)
        best = objective(theirs.coef_.T, theirs.intercept_, centred, targets.numpy(), c, 1.0, "softmax")
        assert said == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(("small", "expected"), [(logreg._SMALL, 1), (0, 2)])
def test_a_small_problem_gets_one_thread(monkeypatch, small, expected):
    """Two wait for each other's next product by spinning."""
    x, labels = digits()
    used, newton_step = set(), logreg.newton_step
    monkeypatch.setattr(logreg, "_SMALL", small)
    monkeypatch.setattr(logreg, "newton_step", lambda *args: used.add(torch.get_num_threads()) or newton_step(*args))
    monkeypatch.setattr(Holder, "take", lambda self, take=Holder.take: used.add(torch.get_num_threads()) or take(self))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        path = LogisticPath(moments_of(x), "softmax", 10, cs=CS[:1])
        solve([path], x, torch.eye(10)[torch.tensor(labels)].double())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert used == {expected}
