"""The folder of a run: what may be written into it, and what comes back out."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from loffta.config import TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.files.durable import part_name
from loffta.files.tensor_file import write_tensors
from loffta.runs.folder import check_out, start_run
from loffta.runs.records import Training
from loffta.runs.run import (
    RunLog,
    RunPaths,
    load_head,
    open_run,
    read_json,
    read_predictions,
    read_results,
    write_json,
    write_lines,
    write_predictions,
    write_results,
)
from tests.written import whole_results

CONFIG = TrainConfig(cache="cache", head="linear", features=("a:b",), recipe={"lr": 1e-5, "epochs": 3})


def test_every_name():
    paths = RunPaths(Path("r"))
    names = [paths.config, paths.predictions("test"), paths.scoring, paths.head(2), paths.metrics(2)]
    names += [paths.results("test"), paths.results("val")]
    names += [paths.checkpoint, paths.search, paths.holdout, paths.training]
    assert [p.as_posix() for p in names] == [
        "r/config.yaml",
        "r/predictions.parquet",
        "r/scoring",
        "r/seed-2/head.safetensors",
        "r/seed-2/metrics.jsonl",
        "r/results.json",
        "r/results-val.json",
        "r/checkpoint.safetensors",
        "r/search.json",
        "r/holdout.json",
        "r/training.json",
    ]


def test_a_log_that_cannot_be_written_is_told_of_once(tmp_path, capsys):
    log = RunLog(tmp_path / "gone" / "log.txt")
    log.write("one")
    log.write("two", show=True)
    err = capsys.readouterr().err
    assert err.startswith("the log is not complete: there is no such file or folder (No such file or directory)\n")
    assert err.count(str(tmp_path / "gone" / "log.txt")) == 1
    assert err.endswith("\ntwo\n")
    (tmp_path / "gone").mkdir()
    log.write("three")  # it is tried again
    assert (tmp_path / "gone" / "log.txt").read_text().endswith(" three\n")


def test_config_comes_back(tmp_path):
    paths = start_run(tmp_path / "deep" / "run", CONFIG)
    again, config = open_run(paths.root)
    assert (again.root, config) == (paths.root, CONFIG)
    before = paths.config.stat().st_mtime_ns
    assert start_run(paths.root, CONFIG).root == paths.root
    assert paths.config.stat().st_mtime_ns == before


def test_another_configuration_is_refused_once_there_is_a_head(tmp_path):
    other = CONFIG.model_copy(update={"seeds": 3, "recipe": {"lr": 1e-4, "epochs": 3}})
    paths = start_run(tmp_path / "run", CONFIG)
    start_run(paths.root, other)  # nothing was there to lose
    assert open_run(paths.root)[1] == other
    write_tensors(paths.head(0), {"w": torch.zeros(1)})
    with pytest.raises(LofftaError) as caught:
        start_run(paths.root, CONFIG)
    assert str(caught.value) == (
        "this run was made with another configuration:\n    recipe.lr: 0.0001 -> 1e-05\n    seeds: 3 -> 1\n"
        f"  where:  {paths.config}\n  remedy: choose another --out, or give the old options to continue it"
    )
    assert open_run(paths.root)[1] == other
    check_out(paths.root, CONFIG, ignore=("recipe", "seeds"))


def test_folders_of_others(tmp_path):
    (tmp_path / "run" / "scoring").mkdir(parents=True)
    start_run(tmp_path / "run", CONFIG)  # what --select leaves while it scores
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty", CONFIG)
    with pytest.raises(LofftaError, match="holds something else"):
        check_out(tmp_path, CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(LofftaError, match="holds something else"):
        start_run(tmp_path / "file", CONFIG)


def test_config_that_cannot_be_read(tmp_path):
    with pytest.raises(LofftaError, match=r"there is no run here(.|\n)*loffta train CACHE"):
        open_run(tmp_path)
    paths = RunPaths(tmp_path)
    paths.config.write_text("head: [")
    with pytest.raises(LofftaError, match="cannot read the configuration"):
        open_run(tmp_path)
    paths.config.write_text("cache: c\nhead: linear\nsed: 3\n")
    with pytest.raises(UsageError, match=r"unknown key 'sed'(.|\n)*did you mean seeds"):
        start_run(tmp_path, CONFIG)


def test_heads(tmp_path):
    state = {"a.weight": torch.randn(3, 4).t(), "n": torch.tensor(5), "half": torch.randn(2).half()}
    path = RunPaths(tmp_path).head(0)
    write_tensors(path, state)
    back = load_head(path)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)


ENTRY = {"backbone": "a", "tap": "b", "score": 1, "per_seed": [1], "raw_score": 1, "inputs": 1}
UNFIT = [  # each value is what it should be, but they do not go together
    ({"task": "none"}, "task: 'none' is none that this version knows"),
    ({"metrics": {}}, "metrics.top1: it is missing"),
    (whole_results({"top1": [1], "f1": [1, 1]}), "metrics: not of one number of seeds"),
    ({"confusion": {"classes": ["a", "b"], "counts": [[1, 2], [3]]}}, "confusion: counts are not classes by classes"),
    ({"relevance": {"backbones": [ENTRY], "taps": [ENTRY | {"backbone": "c"}]}}, "relevance: taps of a backbone that"),
]


def test_results_and_lines(tmp_path):
    paths = RunPaths(tmp_path)
    with pytest.raises(LofftaError, match=r"no results here yet(.|\n)*run its `loffta train` again until it is done"):
        read_results(paths.results("test"))
    paths.training.touch()  # what comes after the last head
    with pytest.raises(LofftaError, match=r"no results here yet(.|\n)*run `loffta evaluate RUN`"):
        read_results(paths.results("test"))
    results = whole_results({"top1": [1]}, new=[{}])
    write_results(paths.results("test"), results)
    assert read_results(paths.results("test")) == results
    for damaged in ("{", "[1]"):
        paths.results("test").write_text(damaged)
        with pytest.raises(LofftaError, match=r"this file of the run cannot be read(.|\n)*delete the file"):
            read_results(paths.results("test"))
    for place, value in (("metrics", []), ("n", "3"), ("features", [{"taps": []}]), ("relevance", {"taps": [{}]})):
        paths.results("test").write_text(json.dumps(results | {place: value}))
        with pytest.raises(LofftaError, match=rf"says what it cannot mean: '{place}(.|\n)*delete the file"):
            read_results(paths.results("test"))
    for part, fault in UNFIT:
        paths.results("test").write_text(json.dumps(results | part))
        with pytest.raises(LofftaError, match=rf"says what it cannot mean: {fault}(.|\n)*delete the file"):
            read_results(paths.results("test"))
    write_lines(paths.metrics(0), [{"epoch": 0}, {"epoch": 1}])
    assert paths.metrics(0).read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_lists_of_numbers_take_a_line(tmp_path):
    path = RunPaths(tmp_path).results("test")
    more = {"counts": [[3, -1], [0.5, 2]], "std": [1.0, None], "names": ["1", "2"], "nested": [{"a": [1]}], "none": []}
    results = whole_results({"top1": [1]}, **more)
    write_results(path, results)
    assert read_results(path) == results
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert "[3, -1]," in lines
    assert '"std": [1.0, null],' in lines


def test_small_files(tmp_path):
    path = RunPaths(tmp_path).search
    write_json(path, {"seconds": 1.5, "epochs": 3, "batch_size": 8, "ä": None})
    assert read_json(path, Training) == Training(seconds=1.5, epochs=3, batch_size=8)
    for text in ("[1]", "{", "", "[" * 10_000):
        path.write_text(text)
        with pytest.raises(LofftaError, match=r"this file of the run cannot be read(.|\n)*another --out"):
            read_json(path, Training)
    path.write_text('{"seconds": 1.5, "epochs": "3", "batch_size": 8}')
    with pytest.raises(LofftaError, match=r"says what it cannot mean: 'epochs' is '3'(.|\n)*another --out"):
        read_json(path, Training)
    with pytest.raises(LofftaError, match="cannot be read"):
        read_json(tmp_path / "none", Training)


def test_a_checkpoint_is_something_to_lose(tmp_path):
    other = CONFIG.model_copy(update={"seeds": 3})
    paths = start_run(tmp_path / "run", CONFIG)
    paths.holdout.write_text("{}")
    check_out(paths.root, other)
    for path in (paths.checkpoint, paths.search, paths.training):
        path.write_text("{}")
        with pytest.raises(LofftaError, match="seeds: 1 -> 3"):
            check_out(paths.root, other)
        path.unlink()


def test_what_a_killed_process_left_is_swept(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    part = part_name(RunPaths(tmp_path).config)
    left = part.with_name(part.name.replace(f".{os.getpid()}.", f".{child.pid}."))
    left.write_text("cache: ")
    paths = start_run(tmp_path, CONFIG)
    assert list(tmp_path.iterdir()) == [paths.config]


def test_predictions(tmp_path):
    columns = {"row": np.array([4, 2]), "key": ["ä", "b"], "confidence": np.array([0.5, 1.0], np.float32)}
    path = RunPaths(tmp_path).predictions("test")
    write_predictions(path, columns)
    back = read_predictions(path)
    assert list(back) == list(columns)
    assert all(back[name].tolist() == list(columns[name]) for name in columns)
    assert back["confidence"].dtype == np.float32
    several = columns | {"label": [[3, 1], []], "probabilities": np.array([[0.5, 0.25], [1.0, 0.0]], np.float32)}
    with pytest.raises(LofftaError, match=r"these predictions are damaged(.|\n)*evaluate RUN"):
        read_predictions(path, ["label"])
    write_predictions(path, several)
    back = read_predictions(path, ["label", "probabilities"])
    assert list(back) == ["label", "probabilities"]
    assert [found.tolist() for found in back["label"]] == several["label"]
    np.testing.assert_array_equal(np.stack(back["probabilities"]), several["probabilities"])
    whole = path.read_bytes()
    for data in (b"", whole[:-9], whole.replace(np.float32(0.25).tobytes(), np.float32(0.5).tobytes())):
        path.write_bytes(data)
        with pytest.raises(LofftaError, match=r"these predictions are damaged(.|\n)*delete the file"):
            read_predictions(path)


def test_config_file_is_plain_yaml(tmp_path):
    paths = start_run(tmp_path / "run", CONFIG)
    saved = yaml.safe_load(paths.config.read_text())
    assert saved["recipe"] == {"lr": 1e-5, "epochs": 3}
    assert saved["features"] == ["a:b"]


def test_fields_that_an_older_loffta_did_not_know_have_their_defaults(tmp_path):
    paths = start_run(tmp_path / "run", CONFIG.model_copy(update={"recipe": {"lr": 0.1}}))
    write_tensors(paths.head(0), {"weight": torch.zeros(1)})
    check_out(paths.root, CONFIG.model_copy(update={"recipe": {"lr": 0.1, "practice": "mae"}}))
    with pytest.raises(LofftaError, match=r"recipe\.practice: mae -> alf"):
        check_out(paths.root, CONFIG.model_copy(update={"recipe": {"lr": 0.1, "practice": "alf"}}))
