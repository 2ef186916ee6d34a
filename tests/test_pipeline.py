"""Pipeline files to command lines and back, and what is kept when a stage fails or runs again."""

import json
import subprocess
from importlib.resources import as_file, files
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from loffta_cli.main import cli

from loffta import pipeline
from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS
from loffta.pipeline import Stage, extract_arguments, load_pipeline, run_local, train_arguments

EXTRACTIONS = [
    {"source": "demo:digits", "cache": "some cache", "backbones": [{"name": "a"}]},
    {"source": "demo:digits", "cache": "c", "backbones": [{"name": "a", "image_px": 64}, {"name": "b"}]},
    {
        "source": "folder:my pictures",
        "cache": "c",
        "backbones": [
            {"name": "a", "weights": "random:0", "taps": "all", "image_px": 64},
            {"name": "b", "weights": "w.safetensors", "taps": "s.1,last", "image_px": 32},
        ],
        "kinds": ["mean"],
        "resize": "crop",
        "interpolation": "bilinear",
        "pool": [2, 3],
        "views": 4,
        "view_seed": 5,
        "precision": "bf16",
        "dtype": "float32",
        "batch_size": 7,
        "device": "cpu",
        "unit_images": 8,
        "share": [1, 4],
        "limit": 100,
        "max_bad_frac": 0.5,
        "ignore_space": True,
    },
]
TRAININGS = [
    {"cache": "some cache", "head": "linear"},
    {
        "cache": "c",
        "head": "combo",
        "features": ["a:last", "b-12345678:s.1,s.2"],
        "task": "classification",
        "train_on": "train+val",
        "validate_on": "val2",
        "holdout": 0.3,
        "test_on": "val",
        "seeds": 3,
        "data_seed": 4,
        "recipe": {"lr": 1e-05, "epochs": 12, "grid": None, "precision": "bf16"},
        "search": True,
        "select": 1,
        "checkpoint_s": 2.5,
        "device": "cpu",
        "feed": "stream",
        "partial": True,
    },
]


class Called(Exception):
    pass


@pytest.fixture
def config_of(monkeypatch):
    """What the command line really parses to: the command runs up to its one call of the library."""

    def call(arguments):
        found = []

        def note(config, *rest):
            found.append(config)
            raise Called

        monkeypatch.setattr("loffta.train.train", note)
        monkeypatch.setattr("loffta.extract.run", note)
        monkeypatch.setattr("loffta.machine.StopFlag.listen", lambda self: self)
        with pytest.raises(Called):
            cli.main(arguments, standalone_mode=False, obj={"verbose": False})
        return found[0]

    return call


@pytest.mark.parametrize("values", EXTRACTIONS)
def test_extract_arguments_come_back(values, config_of):
    config = parse(ExtractConfig, values, where="test")
    assert config_of(extract_arguments(config)) == config


@pytest.mark.parametrize("values", TRAININGS)
def test_train_arguments_come_back(values, config_of):
    config = parse(TrainConfig, values, where="test")
    back = config_of(train_arguments(config, Path("runs/x")))
    assert back == config
    assert {key: type(value) for key, value in back.recipe.items()} == {
        key: type(value) for key, value in config.recipe.items()
    }


@pytest.mark.parametrize(("model", "values"), [(ExtractConfig, EXTRACTIONS[2]), (TrainConfig, TRAININGS[1])])
def test_the_round_trips_leave_no_field_out(model, values):
    config = parse(model, values, where="test")
    same = {"cache", "task"}
    assert set(values) == set(model.model_fields)
    assert all(getattr(config, n) != f.default for n, f in model.model_fields.items() if n not in same)


def test_demo_loads():
    with as_file(files("loffta_pipelines") / "demo.yaml") as path:
        stages, runs, report = load_pipeline(path, Path("out"))
        full, _, _ = load_pipeline(path, Path("out"), recipe={"epochs": 100})
    names = ["linear-last-tap", "linear-all-taps", "combo-one-backbone", "combo-top2"]
    assert [stage.name for stage in stages] == ["extract", *names]
    assert runs == [Path("out/runs") / name for name in names]
    assert report == Path("out/report.html")
    last = stages[-1].command
    assert last == (
        "loffta train out/cache --head combo --out out/runs/combo-top2 --set epochs=12 --set grid=4 "
        "--seeds 3 --select 2"
    )
    assert full[-1].command == last.replace("epochs=12", "epochs=100")
    assert full[1] == stages[1]  # a recipe that does not name its epochs stays
    for stage in stages[1:]:
        config = TrainConfig(cache="c", head=stage.arguments[3])
        parse(HEADS[config.head].recipe, config.recipe, where="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extract: {source: x, backbones: [{name: a}]}", "'train' is missing"),
        ("extracts: {}\ntrain: {}", r"unknown key 'extracts'(.|\n)*did you mean extract"),
        ("extract: {source: x, backbones: [{name: a, tap: all}]}\ntrain: {}", r"'tap'(.|\n)*extract: backbones.0.tap"),
        (
            "extract: {source: x, backbones: [{name: a}]}\ntrain: {one: {head: combo, sedes: 3}}",
            r"unknown key 'sedes'(.|\n)*train.one: sedes(.|\n)*did you mean seeds",
        ),
    ],
)
def test_files_with_mistakes(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_pipeline(path, tmp_path)


@pytest.fixture
def processes(monkeypatch):
    """Stands in for the stages' processes; `codes` says how each ends, by the stage's first word."""
    codes, ran = {}, []

    def run(command, **options):
        word = command[3]
        ran.append(command[3:])
        output = f"text\n{json.dumps({'stores': [{'bytes': 7}, {'bytes': 5}], 'word': word})}\n"
        return subprocess.CompletedProcess(command, codes.get(word, 0), stdout=output)

    monkeypatch.setattr(subprocess, "run", run)
    return codes, ran


STAGES = [Stage("first", ["one", "a b"]), Stage("second", ["two"]), Stage("third", ["three"])]


def test_stages_run_in_order(tmp_path, processes):
    said = []
    results = run_local(STAGES, tmp_path / "out", said.append)
    assert processes[1] == [["one", "a b", "--json"], ["two", "--json"], ["three", "--json"]]
    assert [(r.name, r.bytes, r.result["word"]) for r in results] == [
        ("first", 12, "one"),
        ("second", 12, "two"),
        ("third", 12, "three"),
    ]
    assert said[::2] == ["$ loffta one 'a b'", "$ loffta two", "$ loffta three"]


@pytest.mark.parametrize(("code", "passed_on"), [(2, 2), (4, 4), (75, 75), (-9, 1)])
def test_failed_stage(tmp_path, processes, code, passed_on):
    codes, ran = processes
    codes["two"] = code
    with pytest.raises(LofftaError, match=rf"stage 'second' ended with exit code {code}(.|\n)*loffta two") as caught:
        run_local(STAGES, tmp_path, print)
    assert caught.value.exit_code == passed_on
    assert [words[0] for words in ran] == ["one", "two"]
    assert [entry["name"] for entry in json.loads((tmp_path / "stages.json").read_text())] == ["first"]
    codes.clear()
    assert len(run_local(STAGES, tmp_path, print)) == 3


def test_second_run_keeps_the_seconds_of_the_first(tmp_path, processes, monkeypatch):
    clock = map(float, [0, 100, 100, 130, 130, 135])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run_local(STAGES, tmp_path, print)
    clock = map(float, [0, 1, 1, 2, 2, 202])
    again = run_local(STAGES, tmp_path, print)
    assert [r.seconds for r in again] == [100, 30, 200]
    kept = json.loads((tmp_path / "stages.json").read_text())
    assert [(entry["name"], entry["seconds"]) for entry in kept] == [("first", 100), ("second", 30), ("third", 200)]
    clock = map(float, [0, 1])
    (changed,) = run_local([Stage("first", ["one", "other"])], tmp_path, print)
    assert changed.seconds == 1


@pytest.mark.smoke
def test_a_real_process(tmp_path, capfd):
    """Its message goes to our stderr, its exit code to us."""
    with pytest.raises(LofftaError, match="exit code 1"):
        run_local([Stage("info", ["info", str(tmp_path / "nothing")])], tmp_path / "out", click.echo)
    assert "there is no cache here" in capfd.readouterr().err
