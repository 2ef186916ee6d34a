"""Differences of runs with several classes per image: from logits, from older files, and from none."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from loffta.evaluation.measure import measure, prediction_columns
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.tables import read_runs
from loffta.runs.run import RunPaths, read_predictions, write_predictions
from loffta.tasks import TASKS
from loffta.tasks.bootstrap import image_weights

MULTI_LABEL, LAST = TASKS["multi-label"], {"net": ["stages.2"]}
N_IMAGES, KEYS = 60, [f"{i:02d}.png" for i in range(60)]


@pytest.fixture
def make(make_run):
    """Runs of two seeds whose logits have so much signal; the images lie in another order in each."""

    def make(name, signal):
        rng = np.random.default_rng(len(name))
        has_class = (np.random.default_rng(0).random((N_IMAGES, 3)) < [0.5, 0.3, 0.2]).astype(np.int8)
        logits = (np.random.default_rng(1).normal(size=(2, N_IMAGES, 3)) + signal * has_class).astype(np.float32)
        measured = measure(MULTI_LABEL, logits, has_class, "abc")
        root = make_run(name, [0.5, 0.5], LAST, task="multi-label", n=N_IMAGES, **measured)
        order = rng.permutation(N_IMAGES)
        keys = [KEYS[i] for i in order]
        columns = prediction_columns(MULTI_LABEL, logits[:, order], has_class[order], order, keys)
        write_predictions(RunPaths(root).predictions("test"), columns)
        return root, logits, has_class

    return make


def change(root, drop):
    path = RunPaths(root).predictions("test")
    columns = read_predictions(path)
    for name in drop:
        del columns[name]
    columns |= {name: np.stack(columns[name]) for name in ("logits", "probabilities") if name in columns}
    columns |= {name: [list(v) for v in columns[name]] for name in ("label", "predicted")}
    columns["key"] = list(columns["key"])
    write_predictions(path, columns)


@pytest.mark.parametrize("drop", [(), ("logits",)])
def test_mean_precision_is_paired_by_key(make, drop):
    """Against scikit-learn on the images drawn; the mean over the classes that a resample has."""
    (root, one, has_class), (other_root, other, _) = make("better", 2.0), make("other", 0.5)
    for path in (root, other_root):
        change(path, drop)
    runs = read_runs([root, other_root])
    comparisons = Comparisons(runs)
    found = comparisons.difference(*runs)
    (weights,) = image_weights(N_IMAGES)
    for i, drawn in enumerate(weights[:20].astype(int)):
        rows = np.repeat(np.arange(N_IMAGES), drawn)
        for run, logits in zip(runs, (one, other), strict=True):
            expected = [
                np.mean([average_precision_score(has_class[rows, c], seed[rows, c]) for c in range(3)])
                for seed in logits
            ]
            scored = comparisons._scored[run.paths.root]
            np.testing.assert_allclose(scored.resampled[i], expected, atol=1e-6)
    means = [run.results["metrics"]["map"]["mean"] for run in runs]
    assert found.mean == pytest.approx(means[0] - means[1])
    assert found.ci95[0] < found.mean < found.ci95[1]
    assert found.verdict == "better"


def test_without_scores_it_is_not_known(make):
    (root, *_), (other_root, *_) = make("better", 2.0), make("other", 0.5)
    change(root, ("logits", "probabilities"))
    runs = read_runs([root, other_root])
    assert Comparisons(runs).difference(*runs) == "better: its predictions keep no scores of so many classes"
