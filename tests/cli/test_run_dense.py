"""Dense pipelines on stand-ins of their data with tiny networks, from the file to the summary; and the dense demo."""

import json

import pytest
from loffta_cli.main import main as loffta
from loffta_pipelines import standin

from loffta.pipeline import local
from loffta.pipeline.file import read_pipeline
from loffta.pipeline.plan import make_pipeline
from loffta.runs.run import RunPaths, read_results, write_results
from tests.cli.test_run import DENSE_FILES, HERE
from tests.written import whole_results


@pytest.mark.parametrize("file", DENSE_FILES)
def test_a_dense_pipeline_runs_from_end_to_end(file, tmp_path, in_process, capsys):
    """The metric of the file is there, and the protocol beside it. Ablations and rivals run once, in VOC's."""
    config = read_pipeline(HERE / file)
    task, optional = config.tasks[-1], () if file == "deap/voc.yaml" else config.optional
    names = [name for name in config.train if name not in optional]
    assert standin.main([file, str(tmp_path / "data"), "--tasks", task.name]) == 0
    words = [file, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--tasks", task.name, "--small"]
    test = "online" if config.windows else "cached"
    words += ["--test", test, "--runs", ",".join(names)]
    assert loffta(["run", *words]) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["missing"] == []
    assert list(summary["tasks"][task.name]["runs"]) == names
    for name, by_backbone in summary["tasks"][task.name]["runs"].items():
        for backbone, per_seed in by_backbone.items():
            run = RunPaths(tmp_path / "out" / task.name / "runs" / (f"{name}-{backbone}" if backbone else name))
            results = read_results(run.results(task.test_on or "test"))
            assert results["protocol"] == config.train[name]["protocol"]
            assert (results["dense"]["geometry"] == {"windows": "512/341"}) == bool(config.windows)
            assert results["metrics"][task.metric]["per_seed"] == per_seed


def dense_results(task, metric, value):
    dense = {"target": "mask", "classes": [], "targets": "00ff", "output_px": 64, "settings": {}}
    dense["adapter_parameters"] = 1234
    return whole_results({metric: [value]}) | {"task": task, "protocol": "demo", "dense": dense, "train_seconds": 5.0}


def test_the_dense_demo_shows_tasks_and_the_best_runs_first(tmp_path, monkeypatch, capsys):
    """All five tasks are planned; the table has the runs that have results, errors from the smallest. Stages do nothing
    here, so that there is no run that a report could show: the table comes all the same."""
    config = read_pipeline(HERE / "demo-dense.yaml")
    runs = make_pipeline(config, tmp_path, where=HERE / "demo-dense.yaml").runs
    assert len(runs) == 15
    assert {values["task"] for values in config.train.values()} == {
        *("segmentation", "depth", "boundaries", "detection", "instances")
    }
    named = []
    monkeypatch.setattr(local._Children, "start", lambda self, name, command, environment: named.append(name))
    monkeypatch.setattr(local._Children, "wait", lambda self: (named.pop(), 0, "{}"))
    for task, metric, ending, value in (
        ("depth", "rmse_pooled", "random", 1.5),
        ("depth", "rmse_pooled", "last", 0.5),
        ("segmentation", "miou", "random", 0.1),
        ("segmentation", "miou", "three", 0.4),
    ):
        folder = tmp_path / "runs" / f"{task}-{ending}"
        folder.mkdir(parents=True)
        write_results(RunPaths(folder).results("test"), dense_results(task, metric, value))
    assert loffta(["demo", "--dense", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("task "))
    assert [line.split()[:2] for line in lines[start + 2 : start + 6]] == [
        ["segmentation", "segmentation-three"],
        ["segmentation", "segmentation-random"],
        ["depth", "depth-last"],
        ["depth", "depth-random"],
    ]
    assert "40.0" in lines[start + 2]
    assert "1,234" in lines[start + 2]
    assert "0.5000" in lines[start + 4]
    assert lines[start + 6] == "protocol: demo"


def test_the_dense_demo_has_no_longer_form(tmp_path, capsys):
    assert loffta(["demo", "--dense", "--full", "--out", str(tmp_path / "out")]) == 2
    assert "leave one of --dense and --full out" in capsys.readouterr().err
