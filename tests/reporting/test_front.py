"""Which runs no other beats in quality and cost: against a loop over all pairs, and as the page draws them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from loffta.reporting import Comparisons, find_fronts, read_good_runs, write_report
from loffta.reporting.front import Dot, pareto
from loffta.runs.run import RunPaths


@pytest.mark.parametrize("metric", ["top1", "rmse_pooled"])
def test_none_is_beaten(metric, runs):
    run = replace(runs[0], row=replace(runs[0].row, headline=metric))
    rng = np.random.default_rng(0)
    sign = 1 if metric == "top1" else -1
    for _ in range(50):
        dots = [Dot(run, float(rng.integers(1, 8)), float(rng.integers(1, 8)) / 8) for _ in range(12)]
        found = {(dot.cost, dot.value) for dot in pareto(dots)}

        def beats(one, other):
            as_good = one.cost <= other.cost and sign * one.value >= sign * other.value
            return as_good and (one.cost, one.value) != (other.cost, other.value)

        expected = {(dot.cost, dot.value) for dot in dots if not any(beats(other, dot) for other in dots)}
        assert found == expected
        assert len(pareto(dots)) == len(expected), "of equal runs one"


@pytest.fixture
def runs(make_run):
    """(correct of 15, backbones, head_ms, threads): cheap and bad, dear and good, dear and bad, another machine's."""
    made = {"cheap": (9, ["wild"], 2.0, 2), "good": (13, ["net"], 0.5, 2), "dear": (11, ["net", "wild"], 4.0, 2)}
    roots = []
    for name, (n_right, nets, ms, threads) in (made | {"other": (12, ["net"], 0.1, 64)}).items():
        right = np.arange(15)[None] < n_right
        root = make_run(name, [n_right / 15], {net: ["stages.2"] for net in nets}, right=right)
        path = RunPaths(root).results("test")
        timing = {"timing": {"device": "cpu", "threads": threads, "head_ms": ms}}
        path.write_text(json.dumps(json.loads(path.read_text()) | timing))
        roots.append(root)
    return read_good_runs(roots)[0]


def test_the_front_of_each_cost(runs):
    found = [(one.cost, one.run, one.amount) for one in find_fronts(runs, Comparisons(runs))]
    assert found == [("macs", "cheap", 1e6), ("macs", "good", 3e6), ("head_ms", "good", 0.5)]


def test_the_page_draws_it(runs, tmp_path):
    write_report(runs, tmp_path / "r.html", Comparisons(runs))
    page = (tmp_path / "r.html").read_text()
    section = page.split("<h3>Quality against cost</h3>")[1].split("<h2>")[0]
    on, off = (re.findall(rf'<title>(\w+):[^<]*</title><circle class="{which}"', section) for which in ("on", "off"))
    assert sorted(on) == ["cheap", "good", "good"]
    assert sorted(off) == ["cheap", "dear", "dear", "other"]
    assert "a CPU with 2 threads" in section
    macs = section.split("</svg>")[0]
    place = {
        name: (float(x), float(y))
        for name, x, y in re.findall(r'<title>(\w+):[^<]*</title><circle class="\w+" cx="([\d.]+)" cy="([\d.]+)"', macs)
    }
    assert place["cheap"][0] < place["good"][0] < place["dear"][0]
    assert place["good"][1] < place["other"][1] < place["dear"][1] < place["cheap"][1], "up is better"
    ratio = np.log([1, 3, 4])  # logarithmic: distances are those of the logarithms
    x = [place[name][0] for name in ("cheap", "good", "dear")]
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx((ratio[1] - ratio[0]) / (ratio[2] - ratio[0]), abs=1e-3)
    path = re.search(r'class="front" d="M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H', macs)
    assert [float(n) for n in path.groups()] == pytest.approx([*place["cheap"], *place["good"]])


def test_nothing_to_choose_from(runs, tmp_path):
    write_report(runs[:1], tmp_path / "r.html", Comparisons(runs[:1]))
    assert "Quality against cost" not in (tmp_path / "r.html").read_text()
    assert find_fronts(runs[:1], Comparisons(runs[:1])) == []
