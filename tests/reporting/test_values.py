"""The report of numbers: dots, the images that are furthest off, scores that are no percentages."""

import re

import numpy as np
import pytest

from loffta.evaluation.measure import measure, prediction_columns
from loffta.reporting import Comparisons, compare_best, format_comparison, format_table, read_good_runs, write_report
from loffta.reporting.plots import round_ticks
from loffta.reporting.scatter import scatter
from loffta.runs.run import RunPaths, read_results, write_predictions, write_results
from loffta.tasks import TASKS
from tests.reporting.conftest import BAD_ROW


@pytest.fixture
def make_values(cache, make_run):
    """A run whose seeds are off by about `error`."""

    def make(name, error, n_seeds=2):
        root = make_run(name, [0.5] * n_seeds, {"net": ["stages.2"]})
        paths, task = RunPaths(root), TASKS["regression"]
        rows = np.array([row for row in cache.table.rows_of("test") if row != BAD_ROW])
        values = 100.0 + rows
        off = np.random.default_rng(len(name)).normal(scale=error, size=(n_seeds, len(rows)))
        off[:, 2] = 9 * error  # the image of row 10
        outputs, keys = (values + off)[..., None], [cache.table.keys[row] for row in rows]
        results = read_results(paths.results("test")) | {"task": "regression"}
        write_results(paths.results("test"), results | measure(task, outputs, values, ()))
        write_predictions(paths.predictions("test"), prediction_columns(task, outputs, values, rows, keys))
        return root

    return make


def test_a_page_of_numbers(make_values, tmp_path):
    runs, left_out = read_good_runs([make_values("poor", 2.0), make_values("good", 0.1)])
    assert not left_out
    comparisons = Comparisons(runs)
    write_report(runs, tmp_path / "r.html", comparisons)
    page = (tmp_path / "r.html").read_text()
    assert "Values: good" in page
    assert "Confusion" not in page
    assert len(re.findall('<circle class="image"', page)) == 15
    worst = page.split("Furthest off")[1].split("Of middling error")[0]
    assert worst.index("10.png") < worst.index("tile", worst.index("10.png")), "the first of them"
    assert "truth 110.0" in worst.split("</li>")[0]
    assert "off by 0.9000" in worst.split("</li>")[0]
    assert "<script>alert" not in page
    assert "Highest mean R\N{SUPERSCRIPT TWO} of these runs" in page
    assert "points" not in page.split("Further metrics")[0]
    (found,) = compare_best(runs, comparisons)
    assert (found.run, found.other, found.as_json()["verdict"]) == ("good", "poor", "better")
    assert format_comparison(runs, comparisons).startswith("good has the highest R\N{SUPERSCRIPT TWO}, chosen")
    assert "MAE" in format_table([run.row for run in runs])


def test_of_an_error_the_lowest_is_the_best_on_every_way(make_values, tmp_path, monkeypatch):
    """Were the mean absolute error what reports rank by."""
    roots = [make_values("poor", 2.0), make_values("good", 0.1)]

    def recount(labels, predicted, _scores):
        return lambda weights: weights @ np.abs(predicted - labels).T / len(labels)

    monkeypatch.setitem(TASKS, "regression", TASKS["regression"]._replace(headline="mae", recount=recount))
    runs, _ = read_good_runs(roots)
    comparisons = Comparisons(runs)
    (found,) = compare_best(runs, comparisons)
    assert (found.run, found.other) == ("good", "poor")
    told = found.as_json()
    assert told["mean"] < 0
    assert (told["verdict"], sorted(told)) == (
        "better",
        ["ci95", "mean", "metric", "n_images", "n_seeds", "other", "run", "verdict"],
    )
    assert format_comparison(runs, comparisons).startswith("good has the lowest MAE, chosen on split test")
    write_report(runs, tmp_path / "r.html", comparisons)
    page = (tmp_path / "r.html").read_text()
    assert "Lowest mean MAE of these runs" in page
    assert "Values: good" in page
    assert page.index("<b>good</b>") < page.index("<b>poor</b>")


def test_without_predictions_the_report_stands(make_values, tmp_path):
    root = make_values("run", 1.0)
    RunPaths(root).predictions("test").unlink()
    runs, _ = read_good_runs([root])
    write_report(runs, tmp_path / "r.html")
    assert "No values: this run has no predictions" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (-0.3, 0.9, [-0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 47, [0, 10, 20, 30, 40, 50]),
        (1931.2, 1989.9, [1930, 1940, 1950, 1960, 1970, 1980, 1990]),
        (5, 5, [5, 6]),
        (0.0, 0.0, [0.0, 0.2]),
    ],
)
def test_round_ticks(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_dots_lie_where_their_numbers_are():
    found = scatter([0.0, 10.0], [0.0, 5.0], title="t")
    (x0, y0), (x1, y1) = [
        tuple(map(float, place)) for place in re.findall(r'circle class="image" cx="([\d.]+)" cy="([\d.]+)"', found)
    ]
    assert x0 < x1
    assert (y0 - y1) * 2 == pytest.approx(x1 - x0)
