"""Every pipeline on stand-ins of its data with tiny networks, from its file to its summary; and what fails."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from loffta_cli.main import main as loffta
from loffta_pipelines import standin
from PIL import Image

from loffta.config import parse
from loffta.heads import HEADS
from loffta.heads.fusion import FusionRecipe
from loffta.heads.linear import LinearRecipe
from loffta.heads.recipe import Recipe
from loffta.online import head_of
from loffta.pipeline import engine
from loffta.pipeline.file import read_pipeline
from loffta.pipeline.plan import make_pipeline
from loffta.runs.run import RunPaths, read_results
from loffta.tasks.figures import show

HERE = Path(standin.__file__).parent
FILES = sorted(str(path.relative_to(HERE)) for path in HERE.glob("*/*.yaml") if path.name != "tasks.yaml")
DENSE_FILES = [file for file in FILES if file.startswith(("deap/", "dense/"))]
UNIVERSE = {"vtab1k": 19, "loff-ta": 5, "fusion": 20, "few-shot": 6, "deap": 1, "dense": 1, "slurm": 1}
UNIVERSE |= {"dense/linear-fixed.yaml": 2, "dense/dinov2-linear.yaml": 2}


@pytest.mark.parametrize("file", FILES)
def test_every_file_makes_stages_and_recipes_that_parse(file):
    config = read_pipeline(HERE / file)
    n_tasks = UNIVERSE.get(file, UNIVERSE[file.split("/")[0]])
    assert len(config.tasks) == len({task.name for task in config.tasks}) == n_tasks
    pipeline = make_pipeline(config, Path("out"), where=HERE / file, data=Path("data"))
    assert len({stage.name for stage in pipeline.stages}) == len(pipeline.stages)
    for values in config.train.values():
        parse(HEADS[head_of(values["head"])].recipe, values.get("recipe", {}), where=file)


def test_rows_of_alf_are_trained_as_its_code_does():
    """The linear ones by the probe's recipe, on torch's plain layer; rates and decays are searched."""
    runs = read_pipeline(HERE / "fusion/fusion.yaml").train
    shared = set(Recipe.model_fields) - {"lr", "weight_decay"}
    for name, pooling in (("linear-cls", "cls"), ("linear-both", "cls+mean"), ("linear-all", "cls+mean")):
        recipe = LinearRecipe(**runs[name]["recipe"])
        assert (recipe.practice, recipe.pooling, runs[name]["search"]) == ("alf", pooling, True)
        assert recipe.model_dump(include=shared) == FusionRecipe().model_dump(include=shared)
    assert runs["attentive"]["recipe"] == {"normalise": "tokens"}  # its feature loader's


@pytest.mark.parametrize("file", FILES)
def test_every_file_says_how_it_is_run_and_what_to_expect(file):
    head = (HERE / file).read_text().split("\ntasks:")[0]
    assert f"loffta run {file} --data" in head
    assert all(re.search(rf"^# {word}", head, re.M) for word in ("Expect", "Needs:", "Bytes:", "Hours:"))


@pytest.mark.parametrize("file", [file for file in FILES if file not in DENSE_FILES])
def test_a_pipeline_runs_from_end_to_end(file, tmp_path, in_process, capsys):
    """Every run, the optional ones too."""
    config = read_pipeline(HERE / file)
    task, names = config.tasks[-1].name, list(config.train)
    assert standin.main([file, str(tmp_path / "data"), "--tasks", task]) == 0
    words = [file, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--tasks", task, "--small"]
    words += ["--test", "cached", "--runs", ",".join(names)]
    assert loffta(["run", *words]) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["missing"] == []
    assert list(summary["tasks"][task]["runs"]) == names
    for by_backbone in summary["tasks"][task]["runs"].values():
        assert all(0 <= value <= 1 for values in by_backbone.values() for value in values)
    assert (tmp_path / "out" / task / "report.html").exists()
    assert (tmp_path / "out" / "summary.txt").read_text().strip() in capsys.readouterr().out


def test_rows_without_a_cache_are_made_where_they_are_named(tmp_path, in_process, capsys):
    """LOFF-TA's references: nothing is extracted for them, and only the unfrozen one keeps a backbone."""
    file = "loff-ta/vit-b.yaml"
    standin.main([file, str(tmp_path / "data"), "--tasks", "aptos"])
    words = [file, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--tasks", "aptos", "--small"]
    capsys.readouterr()
    assert loffta(["run", *words, "--dry-run"]) == 0
    assert "--online" not in capsys.readouterr().out
    assert loffta(["run", *words, "--runs", "frozen-linear,unfrozen-linear"]) == 0, capsys.readouterr().err
    runs = tmp_path / "out" / "aptos" / "runs"
    assert sorted(path.name for path in runs.parent.iterdir()) == ["report.html", "runs"]
    assert len(list(runs.glob("frozen-linear/*/head.safetensors"))) == 2
    assert len(list(runs.glob("unfrozen-linear/*/backbone.safetensors"))) == 2
    assert not list(runs.glob("frozen-linear/*/backbone.safetensors"))
    assert read_results(RunPaths(runs / "unfrozen-linear").results("test"))["online"]["unfrozen"]


def test_few_labels_come_to_curves(tmp_path, in_process, capsys):
    file = "few-shot/few-shot.yaml"
    standin.main([file, str(tmp_path / "data"), "--tasks", "pets"])
    words = [file, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--tasks", "pets", "--small"]
    assert loffta(["run", *words, "--runs", "linear"]) == 0, capsys.readouterr().err
    (run, _) = sorted((tmp_path / "out/pets/runs").glob("linear-*"))
    curve = read_results(RunPaths(run).results("test"))["learning_curve"]
    assert [(point["shots"], point["images"]) for point in curve["points"]] == [(1, 3), (2, 6), (4, 12), (8, 24)]
    assert curve["fit"] is not None
    page = (tmp_path / "out/pets/report.html").read_text()
    assert page.count('class="law"') == 2
    assert "<h2>Few labels</h2>" in page


def test_reports_show_the_test_images_that_were_never_cached(tmp_path, in_process, capsys):
    """The results of the training itself are on images that it had seen."""
    file = "vtab1k/single.yaml"
    standin.main([file, str(tmp_path / "data"), "--tasks", "cifar"])
    words = [file, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--tasks", "cifar", "--small"]
    assert loffta(["run", *words, "--runs", "linear-mean"]) == 0, capsys.readouterr().err
    run = RunPaths(tmp_path / "out/cifar/runs/linear-mean")
    assert (read_results(run.results("test"))["n"], read_results(run.results("val"))["n"]) == (12, 6)
    text = (tmp_path / "out/cifar/report.html").read_text()
    assert "Tested on images that were trained on" not in text
    assert "12 images" in text


def words_of(tmp_path, *more):
    """ComBo on two small tasks."""
    standin.main(["vtab1k/single.yaml", str(tmp_path / "data"), "--tasks", "cifar,dtd"])
    words = ["vtab1k/single.yaml", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--small"]
    return [*words, "--tasks", "cifar,dtd", "--runs", "linear-mean", "--test", "cached", *more]


def test_a_failed_task_loses_no_other_and_a_second_call_continues(tmp_path, in_process, capsys):
    words = words_of(tmp_path)
    lists = tmp_path / "data" / "cifar" / "train800.txt"
    text = lists.read_text()
    lists.write_text("broken\n")
    assert loffta(["run", *words]) == 2
    captured = capsys.readouterr()
    assert "1 stage failed: 'cifar/extract' (exit code 2); not begun for that reason: cifar/linear-mean" in captured.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["missing"] == [str(tmp_path / "out/cifar/runs/linear-mean")]
    assert len(summary["tasks"]["dtd"]["runs"]["linear-mean"][""]) == 2  # seeds
    assert summary["averages"]["linear-mean"]["mean_of_tasks"] is None
    lists.write_text(text)
    made = (tmp_path / "out/dtd/runs/linear-mean/results.json").stat().st_mtime_ns
    assert loffta(["run", *words]) == 0
    assert (tmp_path / "out/dtd/runs/linear-mean/results.json").stat().st_mtime_ns == made
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["missing"] == []


def test_only_one_half(tmp_path, in_process, capsys):
    words = words_of(tmp_path)
    assert loffta(["run", *words, "--only", "train"]) == 1  # there is no cache
    assert "2 stages failed" in capsys.readouterr().err
    assert loffta(["run", *words, "--only", "extract"]) == 0
    assert not (tmp_path / "out" / "cifar" / "runs").exists()
    assert loffta(["run", *words, "--only", "train"]) == 0
    assert RunPaths(tmp_path / "out/cifar/runs/linear-mean").results("test").exists()


def test_dry_run_prints_commands_and_makes_nothing(tmp_path, capsys):
    assert loffta(["run", *words_of(tmp_path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["extract", "train"] * 2
    assert not (tmp_path / "out").exists()


ALONE = """
extract:
  cache: {source: "vtab:{data}/set", backbones: [{name: test_vit, weights: "random:0", image_px: 32}]}
train:
  probe: {head: linear, recipe: {epochs: 2}}
"""


def test_a_file_without_tasks(tmp_path, in_process, capsys):
    file, out = tmp_path / "p.yaml", tmp_path / "out"
    file.write_text(ALONE)
    standin.write("vtab:{data}/set", tmp_path)
    assert loffta(["run", str(file), "--data", str(tmp_path), "--out", str(out)]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == [
        "cache",
        "pipelines.json",
        "report.html",
        "runs",
        "stages.json",
    ]
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "loffta extract vtab:" in page  # what the stages took
    assert RunPaths(out / "runs" / "probe").results("test").exists()


SHARED = """
tasks: [{name: set, source: "vtab:{data}/set"}]
extract:
  cache: {backbones: [{name: test_vit, weights: "random:0", image_px: 32}]}
train:
  RUN: {head: linear, recipe: {epochs: 2}}
"""


def test_pipelines_that_share_a_folder_share_its_cache_and_nothing_else(tmp_path, in_process, capsys):
    """Neither report nor summary of the first is another after the second."""
    out = tmp_path / "out"
    standin.write("vtab:{data}/set", tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SHARED.replace("RUN", name))
    run = ["--data", str(tmp_path), "--out", str(out)]
    assert loffta(["run", str(tmp_path / "one.yaml"), *run]) == 0, capsys.readouterr().err
    first = {path: path.read_bytes() for path in (out / "summary.json", out / "set/report.html")}
    made = {path: path.stat().st_mtime_ns for path in (out / "set/cache").rglob("*.parquet")}
    assert loffta(["run", str(tmp_path / "two.yaml"), *run]) == 0, capsys.readouterr().err
    assert {path: path.read_bytes() for path in first} == first
    assert {path: path.stat().st_mtime_ns for path in made} == made
    own = json.loads((out / "summary-two.json").read_text())
    assert (list(own["tasks"]["set"]["runs"]), (out / "set/report-two.html").exists()) == (["two"], True)
    assert f"summary: {out / 'summary-two.json'}" in capsys.readouterr().out


NUMBERS = """
tasks: [{name: ages, source: "{data}/ages.csv", metric: mae}]
extract:
  cache: {backbones: [{name: test_vit, weights: "random:0", image_px: 32}]}
train:
  probe: {head: linear, recipe: {epochs: 2, loss: huber}}
  longer: {head: linear, recipe: {epochs: 3}}
"""


def test_numbers_are_learnt_by_a_pipeline_too(tmp_path, in_process, capsys):
    """Errors in their unit, in every table."""
    rows = ["image,value,split"]
    for i in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{1000 + 10 * i},{'test' if i % 3 else 'train'}")
    (tmp_path / "ages.csv").write_text("\n".join(rows))
    file, out = tmp_path / "p.yaml", tmp_path / "out"
    file.write_text(NUMBERS)
    assert loffta(["run", str(file), "--data", str(tmp_path), "--out", str(out)]) == 0, capsys.readouterr().err
    results = read_results(RunPaths(out / "ages" / "runs" / "probe").results("test"))
    assert (results["task"], results["recipe"]["loss"]) == ("regression", "huber")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tasks"]["ages"]["runs"]["probe"][""] == results["metrics"]["mae"]["per_seed"]
    shown = show("mae", results["metrics"]["mae"]["mean"])
    means = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mean of 1 task")]
    assert means[0].split()[-2] == shown


def test_a_dry_run_shows_mistakes_in_a_recipe(tmp_path, capsys):
    file = tmp_path / "p.yaml"
    file.write_text(ALONE.replace("epochs", "epoch"))
    assert loffta(["run", str(file), "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert re.search(r"unknown key 'epoch'(.|\n)*did you mean epochs", captured.err)
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        (["vtab1k/single.yaml", "--tasks", "cifr"], r"unknown task 'cifr'(.|\n)*did you mean cifar"),
        (["vtab1k/single.yaml", "--runs", "combo", "--tasks", "dtd"], "--data FOLDER"),
    ],
)
def test_mistakes_are_messages(tmp_path, words, message, capsys):
    assert loffta(["run", *words, "--out", str(tmp_path)]) in (1, 2)
    assert re.search(message, capsys.readouterr().err)


def test_the_list_of_vtab_is_the_protocols():
    tasks = yaml.safe_load((HERE / "vtab1k" / "tasks.yaml").read_text())["tasks"]
    sizes = {group: sum(task["group"] == group for task in tasks) for group in ("natural", "specialised", "structured")}
    assert sizes == {"natural": 7, "specialised": 4, "structured": 8}
    assert {task["train_on"] for task in tasks} == {"train+val"}


def test_a_dry_run_for_a_cluster_prints_every_script(tmp_path, monkeypatch, capsys):
    """Without a cluster, too; the last job is this command once more, for what the others come to."""
    monkeypatch.delenv("LOFFTA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = words_of(tmp_path, "--launcher", "slurm", "--partition", "gpu", "--shards", "3")
    capsys.readouterr()
    assert loffta(["run", *words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("#!/bin/bash") == lines.count("#SBATCH --partition=gpu") == 5  # a cache and a run each, a report
    assert sum("--array=0-2 " in line for line in lines if line.startswith("$ sbatch")) == 2
    (report,) = (line for line in lines if "command=(loffta run" in line)
    options = "--only report --data {} --tasks cifar,dtd --runs linear-mean --test cached --small --shards 3"
    assert report.endswith(f"{options.format(tmp_path / 'data')}) ;;")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 1, r"SLURM's command s\w+ is not on this machine(.|\n)*login node"),
        (["--status"], 1, r"SLURM's command s\w+ is not on this machine"),
        (["--cancel"], 1, r"SLURM's command squeue is not on this machine"),
        (["--partition", "a b"], 2, "partition"),
        (["--time", "4h", "--dry-run"], 2, "time"),
    ],
)
def test_what_a_cluster_needs(tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.delenv("LOFFTA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "p.yaml").write_text(ALONE)
    line = ["run", str(tmp_path / "p.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert loffta([*line, "--launcher", "slurm", *words]) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_folder_alone_says_how_it_stands(tmp_path, monkeypatch, capsys):
    """What was submitted with options is asked for without, and taken back; nothing else needs no pipeline."""
    out = tmp_path / "out"
    (tmp_path / "p.yaml").write_text(ALONE)
    words = ["run", str(tmp_path / "p.yaml"), "--data", str(tmp_path), "--out", str(out)]
    monkeypatch.delenv("LOFFTA_HOME", raising=False)
    monkeypatch.setattr(engine, "queue", lambda _: [])
    monkeypatch.setattr(engine, "most_tasks", lambda: 500)
    monkeypatch.setattr(engine, "ended", lambda _: {})
    monkeypatch.setattr(engine, "submit", lambda *_: "7")
    assert loffta([*words, "--launcher", "slurm", "--shards", "2"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for more in ([], [str(tmp_path / "p.yaml")]):
        assert loffta(["run", *more, "--out", str(out), "--status", "--json"]) == 0, capsys.readouterr().err
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        names = [stage["stage"] for stage in told["stages"]]
        assert names == ["extract 0/2", "extract 1/2", "probe", "report"]
        assert told["cost"] == {"cpu_hours": 0.0, "gpu_hours": 0.0, "peak_rss_mib": 0.0, "peak_gpu_mib": None}
    assert loffta([*words, "--status", "--json"]) == 0  # the options that are given count
    assert "extract 0/2" not in capsys.readouterr().out
    assert loffta(["run", "--out", str(out), "--cancel"]) == 0
    assert capsys.readouterr().out == "nothing waits or runs\n"
    assert loffta(["run", "--out", str(tmp_path / "none"), "--status"]) == 1
    assert "nothing was submitted from this folder" in capsys.readouterr().err
    assert loffta(["run", "--out", str(out)]) == 2
    assert "Missing argument 'PIPELINE'" in capsys.readouterr().err
