"""The benchmark of views: every training is there, and its figures are those that the runs themselves tell."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from loffta.runs.run import RunPaths, open_run, read_results

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.fixture
def views(monkeypatch):
    """With a network that is built in no time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import views

    monkeypatch.setattr(views, "BACKBONE", "test_vit")
    monkeypatch.setattr(views, "TAPS", {"dense-linear": "blocks.2,blocks.5"})
    yield views
    for name in ("views", "clock", "scores"):
        sys.modules.pop(name, None)


def test_the_benchmark_runs(views, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["views.py", "--quick", "--work", str(tmp_path)])
    assert views.main() == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    found = {line[0].removeprefix("| "): line for line in lines}
    runs = dict(zip(("0", "0, moved", "1", "online"), ("0", "moved", "1", "online"), strict=True))
    assert list(found) == list(runs)
    means = {}
    for name, folder in runs.items():
        paths, config = open_run(tmp_path / "runs" / f"dense-linear-{folder}")
        told = read_results(paths.results("test"))["metrics"]["miou"]
        means[name] = told["mean"]
        assert float(found[name][2].split()[0]) == pytest.approx(100 * told["mean"], abs=0.3)
        assert (config.views, config.online is not None) == (name == "1", name == "online")
        losses = [float(line["loss"]) for seed in range(2) for line in _log(paths, seed)]
        assert float(found[name][1]) == pytest.approx(np.mean(losses), abs=6e-4)  # of one epoch
    gain = 100 * (means["1"] - means["0"])
    sign = {"\N{MINUS SIGN}": -1, "+": 1}.get(found["1"][3][0], 0)
    assert sign * float(found["1"][3].split()[0].strip("+\N{MINUS SIGN}")) == pytest.approx(gain, abs=0.5)


def _log(paths, seed):
    return [json.loads(line) for line in RunPaths(paths.root).metrics(seed).read_text().splitlines()]
