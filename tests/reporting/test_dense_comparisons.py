"""Which dense run is better: images drawn anew by their records, damaged and older files, how often intervals hold."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from loffta.reporting import Comparisons, format_comparison, format_table, read_good_runs
from loffta.reporting.places import find_places
from loffta.runs.run import RunPaths, read_predictions, write_predictions
from loffta.targets import DenseSettings
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.boundaries import Borders
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.depth import Errors
from loffta.tasks.instances import Grouping
from loffta.tasks.matching import Matches
from loffta.tasks.paired import Scored, difference
from loffta.tasks.records import pack, unpack
from loffta.tasks.segmentation import Pixels
from tests.online.denseruns import dense_cache, dense_run

NO_BOX = np.zeros((0, 5), np.uint8)
RECORDS = [
    Pixels(np.array([1, 7]), np.array([5, 0]), np.array([4, 1]), np.array([4, 0])),
    Errors(9, 0.1, 0.2, 0.3, np.array([1.0, 2.0, 3.0]), 4.5, 6.7),
    Borders(9, 0.5, 3, 2, 1, 2, 1),
    Matches(np.zeros(0), np.zeros(0, int), NO_BOX, NO_BOX, np.array([0]), np.array([[True, False, True, False]])),
    Grouping(1, float("nan")),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two of segmentation, of two seeds each."""
    root = tmp_path_factory.mktemp("dense")
    cache = dense_cache(root / "cache", ("mask",))
    return [dense_run(cache, root / name, seeds=2, lr=lr) for name, lr in (("quick", 0.01), ("slow", 1e-4))]


@pytest.fixture
def runs(made, tmp_path):
    """Copies, to be damaged."""
    return [Path(shutil.copytree(root, tmp_path / root.name)) for root in made]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_the_same_again(record):
    again = unpack(type(record), pack(record))
    for one, other in zip(record, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.shape(one) == other.shape
        assert np.asarray(one).dtype == other.dtype
    assert type(record) in {task.record for task in DENSE_TASKS.values()}
    with pytest.raises(ValueError, match="not a record"):
        unpack(type(record), pack(record)[:-1])
    other = RECORDS[0] if record is not RECORDS[0] else RECORDS[1]
    with pytest.raises(ValueError, match="a record of"):
        unpack(type(record), pack(other))


def test_images_are_drawn_alike_for_both(runs):
    """Against the metric of the images themselves, each as often as it is drawn."""
    loaded, _ = read_good_runs(runs)
    comparisons = Comparisons(loaded)
    found = comparisons.difference(*loaded)
    task, (weights,) = DENSE_TASKS["segmentation"], image_weights(loaded[0].row.n_images)
    for run in loaded:
        columns = read_predictions(run.paths.predictions_dense("test"), ["key", "seed", "record"])
        resampled, classes = comparisons.scored(run).resampled, run.results["dense"]["classes"]
        for seed in range(2):
            mine = columns["seed"] == seed
            by_key = sorted(zip(columns["key"][mine], columns["record"][mine], strict=True))
            records = [unpack(task.record, data) for _, data in by_key]
            for i, drawn in enumerate(weights[:10].astype(int)):
                repeated = [record for record, n in zip(records, drawn, strict=True) for _ in range(n)]
                assert resampled[i, seed] == pytest.approx(task.metrics(repeated, classes, DenseSettings())["miou"])
    means = [run.row.main.mean for run in loaded]
    assert found.mean == pytest.approx(means[0] - means[1])
    assert {*find_places(comparisons)} == {"quick", "slow"}
    assert "not known" not in format_comparison(loaded, comparisons)
    assert "rank" in format_table([run.row for run in loaded], places=find_places(comparisons)).splitlines()[0]


def _older(path):
    columns = read_predictions(path)
    del columns["record"]
    columns["key"] = list(columns["key"])
    write_predictions(path, columns)


def _records(path, records):
    columns = read_predictions(path)
    columns |= {"key": list(columns["key"]), "record": records(list(columns["record"]))}
    write_predictions(path, columns)


BF16 = safetensors.torch.save({name: torch.zeros(1, dtype=torch.bfloat16) for name in Pixels._fields})
BEYOND = Pixels(np.array([1 << 40]), np.array([1]), np.array([1]), np.array([1]))
DAMAGES = {
    "older": (_older, "older than comparisons"),
    "gone": (lambda path: path.unlink(), "no figures of its images"),
    "garbage": (lambda path: _records(path, lambda old: [b"\xff" * 40] * len(old)), "do not go with the results"),
    "a dtype of torch": (
        lambda path: _records(path, lambda old: [BF16] * len(old)),
        "do not go with the results",
    ),
    "others'": (lambda path: _records(path, lambda old: [pack(RECORDS[1])] * len(old)), "do not go with the results"),
    "no such class": (lambda path: _records(path, lambda old: [pack(BEYOND)] * len(old)), "damaged"),
    "turned": (lambda path: _records(path, lambda old: [old[0]] * len(old)), "another score"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=list(DAMAGES))
def test_without_its_records_a_run_is_not_compared(runs, damage, words):
    damage(RunPaths(runs[1]).predictions_dense("test"))
    loaded, _ = read_good_runs(runs)
    assert words in str(Comparisons(loaded).difference(*loaded))


@pytest.mark.parametrize("change", [{"targets": "0" * 16}, {"eval_px": 8}, {"geometry": "crop"}, {"unknown": 1}])
def test_other_pixels_are_not_compared(runs, change):
    path = RunPaths(runs[1]).results("test")
    results = json.loads(path.read_text())
    told = results["dense"]
    (told if set(change) <= set(told) else told["settings"]).update(change)
    path.write_text(json.dumps(results))
    loaded, _ = read_good_runs(runs)
    found = Comparisons(loaded).difference(*loaded)
    assert found == "they were tested on different images, or by different labels" or "damaged" in str(found)


def test_intervals_hold_the_truth():
    """Of simulated test sets: pixels of three classes, two heads that are right with known chances."""
    rng, task, n_trials, n_images, n_pixels = np.random.default_rng(0), DENSE_TASKS["segmentation"], 200, 40, 200
    chances = [(0.80, 0.25), (0.76, 0.25)]  # mean and spread over images of a pixel's being right

    def images(n):
        shares = rng.dirichlet([2.0, 1.0, 0.5], n)
        hard = rng.normal(size=n)
        labelled = np.array([rng.multinomial(n_pixels, share) for share in shares])
        found = []
        for mean, spread in chances:
            right_share = np.clip(mean + spread * hard, 0.02, 0.98)
            right = rng.binomial(labelled, right_share[:, None])
            wrong = labelled - right
            predicted = right + np.roll(wrong, 1, axis=1)  # a wrong pixel of class c is given c + 1
            found.append([Pixels(np.arange(3), *of_image) for of_image in zip(labelled, predicted, right, strict=True)])
        return found

    def miou(records):
        return task.metrics(records, "abc", DenseSettings())["miou"]

    truth = np.subtract(*(miou(records) for records in images(20_000)))
    held = 0
    for _ in range(n_trials):
        sides = []
        for records in images(n_images):
            count = task.recount(records, "abc", DenseSettings())
            drawn = np.concatenate([count(weights)["miou"] for weights in image_weights(n_images, 200)])
            sides.append(Scored(np.array([miou(records)]), drawn[:, None]))
        low, high = difference(*sides, n_images).ci95
        held += low <= truth <= high
    assert 0.9 <= held / n_trials <= 0.99  # 95 %, three standard errors of 200 trials below
