"""Every dense pipeline on stand-ins of its data with tiny networks, from its file to its summary."""

import json

import pytest
import yaml
from loffta_cli.main import main as loffta
from loffta_pipelines import standin

from loffta.pipeline.file import read_pipeline
from loffta.runs.run import RunPaths, read_results
from loffta.tasks.figures import FIGURES
from tests.cli.test_run import DENSE_FILES, HERE


@pytest.mark.parametrize("file", DENSE_FILES)
def test_a_dense_pipeline_runs_from_end_to_end(file, tmp_path, in_process, capsys):
    """Every run, the optional ones too; the metric of the file is there, and the protocol beside it."""
    config = read_pipeline(HERE / file)
    names = list(config.train)
    assert standin.main([file, str(tmp_path / "data")]) == 0
    words = [file, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--small", "--test", "cached"]
    assert loffta(["run", *words, "--runs", ",".join(names)]) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["missing"] == []
    assert list(summary["tasks"]) == [task.name for task in config.tasks]
    for task in config.tasks:
        assert task.metric in FIGURES
        assert list(summary["tasks"][task.name]["runs"]) == names
        for path in (tmp_path / "out" / task.name / "runs").iterdir():
            if path.is_dir():
                results = read_results(RunPaths(path).results(task.test_on or "test"))
                assert (
                    results["protocol"]
                    == config.train[yaml.safe_load(path.name.rsplit("-test_vit")[0].rsplit("-vit_tiny")[0])]["protocol"]
                )
