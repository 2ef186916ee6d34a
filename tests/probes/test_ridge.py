"""Closed forms against scikit-learn's solvers and plain loops, on features with means far larger than their spreads."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeClassifier, RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from loffta.probes.moments import Moments
from loffta.probes.ridge import Ridge, mean_squares, signs, solve

STRENGTHS = (1e-3, 0.1, 1.0, 30.0, 1e4)


def draw(n_images=150, n_columns=24, n_targets=3, seed=0):
    """Columns of different spreads, some of them correlated, one of them constant, means of up to 100."""
    rng = np.random.default_rng(seed)
    x = (
        rng.normal(size=(n_images, n_columns))
        @ rng.normal(size=(n_columns, n_columns))
        * 3.0 ** rng.normal(size=n_columns)
    )
    x += 100 * rng.normal(size=n_columns)
    x[:, 5] = 7.0
    y = x @ rng.normal(size=(n_columns, n_targets)) + 5 * rng.normal(size=(n_images, n_targets)) + 3
    return x.astype(np.float32).astype(np.float64), y


def moments_of(x, y, weights=None, n_batch=40):
    found = Moments.empty(x.shape[1], y.shape[1])
    for first in range(0, len(x), n_batch):
        part = slice(first, first + n_batch)
        found.add(
            torch.tensor(x[part]).float(),
            torch.tensor(y[part]),
            None if weights is None else torch.tensor(weights[part]),
        )
    return found


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_moments_are_those_of_all_images_at_once():
    x, y = draw()
    weights = np.random.default_rng(1).integers(0, 3, len(x)).astype(float)
    both = np.hstack([x, y])
    for found, heavy in ((moments_of(x, y), np.ones(len(x))), (moments_of(x, y, weights), weights)):
        mean = np.average(both, axis=0, weights=heavy)
        assert found.weight == heavy.sum()
        np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(
            found.scatter, (both - mean).T @ ((both - mean) * heavy[:, None]), rtol=1e-9, atol=1e-6
        )
    np.testing.assert_allclose(moments_of(x, y).deviation, StandardScaler().fit(x).scale_, rtol=1e-12)


def test_the_features_are_left_as_they_were():
    x = torch.ones((3, 2), dtype=torch.float64) * torch.arange(3)[:, None]
    before = x.clone()
    Moments.empty(2).add(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("n_images", [150, 15], ids=["more images than columns", "fewer"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_strength_is_scikit_learns(standardise, n_images, weighted):
    x, y = draw(n_images)
    weights = np.random.default_rng(1).uniform(0.2, 2, n_images) if weighted else None
    fit = Ridge(moments_of(x, y, weights), standardise=standardise)
    scale = np.sqrt(np.cov(x.T, aweights=weights, ddof=0).diagonal()) if standardise else np.ones(x.shape[1])
    scale[5] = 1.0
    for strength in STRENGTHS:
        theirs = SklearnRidge(alpha=strength, solver="svd").fit(x / scale, y, sample_weight=weights)
        ours = fit.map(strength)
        close(ours.weight.numpy(), (theirs.coef_ / scale).T)
        close(ours(torch.tensor(x)).double().numpy(), theirs.predict(x / scale))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_classification_is_scikit_learns(n_classes):
    x, y = draw()
    labels = np.digitize(y[:, 0], np.quantile(y[:, 0], np.arange(1, n_classes) / n_classes))
    balanced = (len(labels) / (n_classes * np.bincount(labels)))[labels]
    for weights, class_weight in ((None, None), (balanced, "balanced")):
        fit = Ridge(moments_of(x, signs(torch.tensor(labels), n_classes).numpy(), weights), standardise=False)
        theirs = RidgeClassifier(alpha=2.0, class_weight=class_weight).fit(x, labels)
        logits = fit.map(2.0)(torch.tensor(x).float()).numpy()
        close(logits.squeeze(), theirs.decision_function(x))
        found = (logits[:, 0] > 0).astype(int) if n_classes == 2 else logits.argmax(axis=1)
        np.testing.assert_array_equal(found, theirs.predict(x))


@pytest.mark.parametrize("standardise", [False, True])
def test_one_strength_alone_is_the_same_by_another_factorisation(standardise):
    """And scikit-learn's; also where there are more features than images."""
    for n_images in (200, 15):
        x, y = draw(n_images)
        moments = moments_of(x, y)
        for strength in (1e-3, 1.0, 100.0):
            ours = solve(moments, strength, standardise=standardise)
            whole = Ridge(moments, standardise=standardise).map(strength)
            close(ours.weight.numpy(), whole.weight.numpy())
            spread = x.std(axis=0)
            scale = np.where(spread > 0, spread, 1.0) if standardise else np.ones(x.shape[1])
            theirs = SklearnRidge(alpha=strength, solver="svd").fit(x / scale, y)
            close(ours.weight.numpy() * scale[:, None], theirs.coef_.T)


def test_every_subset_of_columns_comes_from_one_pass():
    x, y = draw()
    whole = moments_of(x, y)
    for columns in ([0, 1, 2], [20, 3, 9, 5], list(range(12, 24))):
        ours = Ridge(whole.columns(torch.tensor(columns)), standardise=False).map(1.0)
        theirs = SklearnRidge(alpha=1.0, solver="svd").fit(x[:, columns], y)
        close(ours.weight.numpy(), theirs.coef_.T)
        close(ours.bias.numpy(), theirs.intercept_)


def test_folds_from_one_pass_choose_what_ridge_cv_chooses():
    """A fold's moments score what the others' moments fitted: no image is seen a second time."""
    x, y = draw()
    x = x / x.std(axis=0).clip(min=1e-3)
    folds = list(KFold(5).split(x))
    parts = [moments_of(x[held], y[held]) for _, held in folds]
    found = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for i, part in enumerate(parts):
        rest = Moments.empty(x.shape[1], y.shape[1])
        for j, other in enumerate(parts):
            rest = rest if i == j else rest.plus(other)
        fit = Ridge(rest, standardise=False)
        errors = torch.stack([mean_squares(part, fit.map(strength)).mean() for strength in STRENGTHS])
        for strength, error in zip(STRENGTHS, errors, strict=True):
            train, held = folds[i]
            theirs = SklearnRidge(alpha=strength, solver="svd").fit(x[train], y[train])
            close(error.numpy(), ((theirs.predict(x[held]) - y[held]) ** 2).mean())
        found += errors
    theirs = RidgeCV(alphas=STRENGTHS, cv=KFold(5), scoring="neg_mean_squared_error").fit(x, y)
    best = STRENGTHS[int(found.argmin())]
    assert best == theirs.alpha_
    assert best not in (STRENGTHS[0], STRENGTHS[-1]), "or there was nothing to choose"
    close(Ridge(moments_of(x, y), standardise=False).map(best).weight.numpy(), theirs.coef_.T)


def test_generalised_cross_validation_equals_the_formula_with_the_hat_matrix():
    x, y = draw(60)
    fit = Ridge(moments_of(x, y), standardise=False)
    centred = x - x.mean(axis=0)
    for strength in STRENGTHS:
        hat = np.full((60, 60), 1 / 60) + centred @ np.linalg.solve(
            centred.T @ centred + strength * np.eye(24), centred.T
        )
        left = ((y - hat @ y) ** 2).sum(axis=0)
        close(fit.cross_validation(strength).numpy(), 60 * left / (60 - np.trace(hat)) ** 2)


def test_the_default_path_goes_with_the_images():
    """Ten times the same images want ten times the strength: the maps are the same."""
    x, y = draw(30)
    once, tenfold = (Ridge(moments_of(np.tile(x, (n, 1)), np.tile(y, (n, 1))), standardise=True) for n in (1, 10))
    for one, ten in zip(once.strengths(), tenfold.strengths(), strict=True):
        close(once.map(one).weight.numpy(), tenfold.map(ten).weight.numpy())
