"""`loffta train` and `loffta evaluate` as a user meets them: options, files, messages, exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from loffta_cli.common import parse_settings
from loffta_cli.main import main
from loffta_cli.train import command

from loffta.augment import PRESETS
from loffta.errors import UsageError
from loffta.heads import DENSE_HEADS, HEADS, IMAGE_HEADS
from loffta.runs.run import RunPaths
from tests.caches import FakeStore, make_cache, make_table, separable, toy_cache

pytestmark = pytest.mark.usefixtures("quiet_process")

QUICK = ["--device", "cpu", "--set", "epochs=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(toy_cache(tmp_path_factory.mktemp("toy") / "cache").paths.root)


def config_of(out):
    return yaml.safe_load(RunPaths(out).config.read_text())


def test_help_names_every_head_by_what_it_is_for():
    """The help imports no head: its words are compared with the registry here."""
    (head,) = (option for option in command.params if option.name == "head")
    whole, dense, masks = (re.split("[:.]", part)[1] for part in re.split(r"(?<=\.) |; ", head.help))
    assert sorted(whole.replace(",", " ").split()) == sorted(IMAGE_HEADS)
    assert sorted(dense.replace(",", " ").split()) == sorted(n for n in DENSE_HEADS if HEADS[n].tasks is None)
    assert masks.split() == [name for name in DENSE_HEADS if HEADS[name].tasks == ("segmentation",)]


def fails(args, code, capsys):
    """The message of a command that must fail without a traceback."""
    assert main([str(arg) for arg in args]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


def test_every_option_arrives(cache, tmp_path):
    out = tmp_path / "run"
    options = [
        "--head",
        "linear",
        "--out",
        str(out),
        "--features",
        "good:a.0",
        "--features",
        "good:a.1",
        "--seeds",
        "2",
    ]
    options += [
        "--train-on",
        "test",
        "--test-on",
        "train",
        "--data-seed",
        "5",
        "--feed",
        "stream",
        "--partial",
        "--one-class",
    ]
    options += ["--holdout", "0.25", "--search", "--set", "search_lr=[0.1,0.01]", "--set", "search_weight_decay=[0.0]"]
    options += ["--checkpoint-s", "7", "--order", "windowed", "--augment", "loff-ta", "--set", "augment.rotation_deg=7"]
    assert main(["train", cache, *options, *QUICK, "--set", "lr=1e-3", "--set", "precision=null"]) == 0
    config = config_of(out)
    assert [f.split(":")[1] for f in config.pop("features")] == ["a.0,a.1"]
    recipe = config.pop("recipe")
    assert (recipe["epochs"], recipe["lr"], recipe["precision"]) == (2, 0.001, None)
    assert config == {
        "cache": cache,
        "labels": None,
        "head": "linear",
        "task": "classification",
        "train_on": "test",
        "validate_on": None,
        "holdout": 0.25,
        "test_on": "train",
        "folds": None,
        "group": None,
        "shots": [],
        "draws": None,
        "seeds": 2,
        "data_seed": 5,
        "search": True,
        "select": None,
        "device": "cpu",
        "feed": "stream",
        "order": "windowed",
        "augment": {**PRESETS["loff-ta"].model_dump(mode="json"), "rotation_deg": 7.0},
        "checkpoint_s": 7.0,
        "partial": True,
        "one_class": True,
        "protocol": None,
        "views": False,
        "online": None,
    }
    assert RunPaths(out).results("train").exists()
    assert RunPaths(out).results("holdout").exists()
    assert [RunPaths(out).head(seed).exists() for seed in range(3)] == [True, True, False]


def test_json_is_the_results_file(cache, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", cache, "--head", "linear", "--out", str(out), *QUICK, "--json"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    results = json.loads(lines[-1])
    assert results == json.loads((out / "results.json").read_text())
    top1 = results["metrics"]["top1"]
    low, high = top1["ci95"]
    interval = f"{100 * low:.1f}\u2013{100 * high:.1f}"
    assert lines[0] == f"top-1 {100 * top1['mean']:.1f} %, 95 % interval {interval} (20 images)"
    ece, surest = (
        results["calibration"]["as_trained"]["figures"][n]["mean"] for n in ("ece_width15", "top1_surest_90")
    )
    assert lines[len(results["metrics"])] == (
        f"calibration: ECE (15 bins of equal width) {100 * ece:.1f} %; top-1 with a tenth refused {100 * surest:.1f} %"
    )
    assert lines[len(results["metrics"]) + 1].startswith("written to ")

    assert main(["train", cache, "--head", "linear", "--out", str(out), *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == results

    assert main(["evaluate", str(out), "--split", "train", "--device", "cpu", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluated == json.loads((out / "results-train.json").read_text())
    assert evaluated["n"] == 40


def test_file_and_options(cache, tmp_path):
    file = tmp_path / "train.yaml"
    values = {"cache": cache, "head": "linear", "seeds": 2, "device": "cpu", "recipe": {"epochs": 3, "lr": 0.01}}
    file.write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "a")]) == 0
    config = config_of(tmp_path / "a")
    assert (config["cache"], config["seeds"], config["recipe"]["epochs"]) == (cache, 2, 3)
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "b"), "--seeds", "1", *QUICK]) == 0
    config = config_of(tmp_path / "b")
    assert (config["seeds"], config["recipe"]["epochs"], config["recipe"]["lr"]) == (1, 2, 0.01)
    assert main(["train", "--config", str(tmp_path / "b" / "config.yaml"), "--out", str(tmp_path / "c")]) == 0
    assert config_of(tmp_path / "c") == config


def test_files_with_mistakes(cache, tmp_path, capsys):
    file = tmp_path / "train.yaml"
    file.write_text("head: linear\nsedes: 3\n")
    message = fails(["train", cache, "--config", file, "--out", tmp_path / "run"], 2, capsys)
    assert "unknown key 'sedes'" in message
    assert f"{file}: sedes" in message
    assert "did you mean seeds" in message
    for recipe in ("null", "[1]", "words"):
        file.write_text(f"head: linear\nrecipe: {recipe}\n")
        assert "recipe: " in fails(["train", cache, "--config", file, "--out", tmp_path / "run"], 2, capsys)
    missing = fails(["train", cache, "--config", tmp_path / "no.yaml", "--out", tmp_path / "run"], 1, capsys)
    assert "cannot read the configuration" in missing


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--head", "comboo"], 2, ["unknown head 'comboo'", "did you mean combo"]),
        (["--head", "linear", "--set", "epoch=1"], 2, ["unknown key 'epoch'", "did you mean epochs"]),
        (["--head", "linear", "--set", "epochs"], 2, ["'epochs' is not key=value", "--set epochs=12"]),
        (["--head", "linear", "--set", "lr=[1"], 2, ["the value of 'lr' cannot be read"]),
        (["--head", "linear", "--set", "lr=fast"], 2, ["lr: ", "got 'fast'"]),
        (["--head", "linear", "--features", "goood"], 2, ["unknown store 'goood'", "did you mean good"]),
        (["--head", "linear", "--features", "good:a.2"], 2, ["unknown tap 'a.2'", "did you mean a."]),
        (["--head", "linear", "--train-on", "tran"], 2, ["unknown split 'tran'", "did you mean train"]),
        (["--head", "linear", "--test-on", "tests"], 2, ["unknown split 'tests'", "did you mean test"]),
        (["--head", "linear", "--data-seed", "-1"], 2, ["data_seed: it must be from 0 to 4,294,967,295"]),
        (["--head", "linear", "--seeds", "0"], 2, ["seeds: it must be from 1 to 1,000"]),
        (["--head", "linear", "--device", "abacus"], 2, ["device 'abacus' cannot be used"]),
        (["--head", "linear", "--task", "clasify"], 2, ["unknown task 'clasify'", "did you mean classification"]),
        (["--head", "linear", "--sed", "1"], 2, ["No such option"]),
        (["--head", "linear", "--select", "1"], 2, ["gives no relevance", "--head combo"]),
        ([], 2, ["'--head NAME' is missing", "give --head NAME"]),
    ],
)
def test_mistakes_name_the_way_out(cache, tmp_path, capsys, options, code, words):
    message = fails(["train", cache, "--out", tmp_path / "run", *options], code, capsys)
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "run").exists()


def test_a_cache_that_is_not_named(tmp_path, capsys):
    assert "give CACHE" in fails(["train", "--head", "linear", "--out", tmp_path / "run"], 2, capsys)


def test_cache_that_is_not_there(tmp_path, capsys):
    message = fails(["train", tmp_path / "no", "--head", "linear", "--out", tmp_path / "run"], 1, capsys)
    assert "loffta extract SOURCE" in message
    assert "there is no run here" in fails(["evaluate", tmp_path / "run"], 1, capsys)


def test_cache_that_is_not_finished(tmp_path, capsys):
    labels, grids = separable(40)
    table = make_table(labels, ["train"] * 24 + ["test"] * 16)
    root = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids}, missing=(2,))]).paths.root
    args = ["train", root, "--head", "linear", "--out", tmp_path / "run", *QUICK]
    message = fails(args, 1, capsys)
    assert "8 of the 24 images of split 'train'" in message
    assert f"loffta extract folder:pictures --cache {root} --backbone net --weights hub --taps x" in message
    assert main([str(arg) for arg in [*args, "--partial"]]) == 0


def test_select_prints_what_was_kept(tmp_path, capsys):
    labels, grids = separable(60)
    noise = np.random.default_rng(3).normal(size=(60, 2, 2, 6)).astype(np.float32)
    table = make_table(labels, ["train"] * 40 + ["test"] * 20)
    stores = [FakeStore("good", {"x": grids}), FakeStore("noise", {"x": noise})]
    root = make_cache(tmp_path / "cache", table, stores).paths.root
    settings = ["width=8", "depth=1", "epochs=20", "lr=0.01"]
    args = ["train", str(root), "--head", "combo", "--out", str(tmp_path / "run"), "--select", "1", "--device", "cpu"]
    assert main([*args, *(word for s in settings for word in ("--set", s)), "--json"]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [f["label"] for f in results["features"]] == ["good"]
    assert main(["evaluate", str(tmp_path / "run" / "scoring"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0::2] for line in lines if line.startswith("relevance")] == [
        ["relevance", "good"],
        ["relevance", "noise"],
    ]


def test_settings():
    pairs = ("a=4", "b=1e-3", "c=null", "d=bf16", "e=[1, 2]", "f=", "g=x=y", "h=true", "i=.5", 'j="4"', "k=yes")
    assert parse_settings(pairs) == {
        "a": 4,
        "b": 0.001,
        "c": None,
        "d": "bf16",
        "e": [1, 2],
        "f": None,
        "g": "x=y",
        "h": True,
        "i": 0.5,
        "j": "4",
        "k": True,
    }
    with pytest.raises(UsageError, match="not key=value"):
        parse_settings(("=4",))


@pytest.mark.smoke
def test_train_as_a_process_and_evaluate_where_the_cache_has_moved(tmp_path, monkeypatch, capsys):
    """Evaluation as a process of its own: test_imports.py."""
    root, out = toy_cache(tmp_path / "cache").paths.root, tmp_path / "run"
    words = ["train", "cache", "--head", "combo", "--out", "run", *QUICK, "--set", "depth=1", "--json"]
    trained = subprocess.run(
        [sys.executable, "-m", "loffta_cli", *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert trained.returncode == 0
    assert re.fullmatch(r"\w+: \d+ images, host: [^\n]+; uniform order\n", trained.stderr)
    moved = root.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    fails(["evaluate", "run"], 1, capsys)
    assert main(["evaluate", "run", "--cache", str(moved), "--device", "cpu", "--json"]) == 0
    first, second = (json.loads(said.splitlines()[-1]) for said in (trained.stdout, capsys.readouterr().out))
    assert first["metrics"] == second["metrics"]
    assert second == json.loads((out / "results.json").read_text())


def test_int8_from_images_to_accuracy(tmp_path, capsys):
    """The same commands with --dtype int8: half the bytes of features, heads that are as good within their spread."""
    shared = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32", "--taps", "all", "--device", "cpu"]
    extract = ["extract", "demo:digits", *shared, "--kinds", "grid", "--unit-images", "64", "--json"]
    results, n_bytes = {}, {}
    for dtype in ("float16", "int8"):
        root, out = str(tmp_path / dtype), str(tmp_path / f"run-{dtype}")
        assert main([*extract, "--cache", root, "--dtype", dtype]) == 0
        n_bytes[dtype] = json.loads(capsys.readouterr().out.splitlines()[-1])["stores"][0]["bytes"]
        assert main(["train", root, "--head", "linear", "--features", "test_vit:all", "--out", out, *QUICK]) == 0
        results[dtype] = json.loads((tmp_path / f"run-{dtype}" / "results.json").read_bytes())
    capsys.readouterr()
    assert 1.9 < n_bytes["float16"] / n_bytes["int8"] < 2
    top1 = [results[dtype]["metrics"]["top1"]["mean"] for dtype in ("float16", "int8")]
    assert top1[0] > 0.15
    assert abs(top1[0] - top1[1]) < 0.05
    assert main(["info", str(tmp_path / "int8"), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (array,) = [array for store in json.loads(lines[-1])["stores"] for array in store["arrays"]]
    assert array["dtype"] == "int8"
    assert 0 < max(array["int8_error"].values()) < 0.03
    assert list(array["int8_error"]) == array["taps"]
    assert 0 <= array["saturated"] < 1e-3
    (folder,) = (tmp_path / "int8").glob("stores/*/grid-0-int8")
    assert array["scale_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert any(re.match(r" +int8: error \d\.\d+%, out of range 0\.\d+%", line) for line in lines)


def test_search_prints_what_was_chosen(cache, tmp_path, capsys):
    grid = ["--set", "search_lr=[0.1]", "--set", "search_weight_decay=[0.5]"]
    assert main(["train", cache, "--head", "linear", "--out", str(tmp_path / "run"), "--search", *grid, *QUICK]) == 0
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if line.startswith("search")]
    assert re.fullmatch(r"search chose lr 0.1, weight decay 0.5 \(balanced accuracy \d+\.\d % on 20 % of train\)", line)
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train", "--device", "cpu"]) == 0
    assert line in capsys.readouterr().out


def test_holdout_is_a_split_like_others(cache, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", cache, "--head", "linear", "--out", out, "--holdout", "0.25", *QUICK, "--json"]) == 0
    capsys.readouterr()
    assert main(["evaluate", out, "--split", "holdout", "--device", "cpu", "--json"]) == 0
    held = json.loads(RunPaths(Path(out)).holdout.read_text())["rows"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == len(held) > 0
    whole = json.loads(RunPaths(Path(out)).results("test").read_bytes())["n"]
    assert main(["evaluate", out, "--device", "cpu", "--json"]) == 0  # the split that the run was tested on
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == whole
    grids = {"x": np.zeros((40, 1, 1, 2), np.float32)}
    no_test = make_cache(
        tmp_path / "cache", make_table(np.arange(40) % 2, ["train"] * 40), [FakeStore("net", grids)]
    ).paths.root
    other = str(tmp_path / "other")
    words = ["--head", "linear", "--out", other, "--holdout", "0.25", *QUICK]
    assert main(["train", str(no_test), *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", other, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["split"] == "holdout"
    for words, message in (
        (["--holdout", "1.5"], "holdout: input should be less"),
        (["--checkpoint-s", "0"], "checkpoint_s"),
    ):
        assert message in fails(["train", cache, "--head", "linear", "--out", tmp_path / "no", *words], 2, capsys)
