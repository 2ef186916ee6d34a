"""`loffta train --folds` and `--shots` as a user meets them: lines, JSON, reports, messages."""

import json

import pytest

from loffta.reporting.tables import read_good_runs
from loffta.runs.run import RunPaths
from tests.caches import toy_cache
from tests.cli.small import assert_error

pytestmark = pytest.mark.usefixtures("quiet_process")

QUICK = ["--device", "cpu", "--set", "epochs=3", "--set", "batch_size=8", "--set", "lr=0.02"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache").paths.root


def test_folds_from_the_command_to_the_report(root, tmp_path, command):
    words = ["train", root, "--head", "linear", "--folds", 4, "--out", tmp_path / "run", *QUICK]
    code, out, err = command(*words, "--json")
    assert code == 0, err
    results = json.loads(out.splitlines()[-1])
    assert results["split"] == "out-of-fold"
    assert results == json.loads(RunPaths(tmp_path / "run").results("out-of-fold").read_text())
    code, out, _ = command(*words)  # read back
    assert code == 0
    told = results["folds"]["metrics"]["top1"]
    assert (
        f"4 folds, mean and deviation over them: top-1 {100 * told['mean']:.1f} ± {100 * told['std']:.1f} %"
        in " ".join(out.split())
    )
    assert "results-out-of-fold.json, predictions-out-of-fold.parquet" in " ".join(out.split())
    code, out, _ = command("evaluate", tmp_path / "run", "--device", "cpu", "--json")
    assert json.loads(out.splitlines()[-1])["metrics"] == results["metrics"]
    assert "trained on" not in out, "each image by heads that have not seen it"
    code, out, _ = command("evaluate", tmp_path / "run", "--split", "test", "--device", "cpu")
    assert "over 4 heads of 4 folds" in " ".join(out.split()), "they are no seeds"
    assert "trained on" not in out
    [row] = [run.row for run in read_good_runs([tmp_path / "run"], "test")[0]]
    assert (row.n_seeds, row.heads, row.heads_short) == (4, "4 folds", "4 folds")
    code, out, _ = command("evaluate", tmp_path / "run", "--split", "train+test", "--device", "cpu")
    parted = json.loads(RunPaths(tmp_path / "run").turns.read_text())["rows"]
    assert f"{len(parted)} of these images are among what the heads were trained on" in out
    code, out, _ = command("report", tmp_path / "run", "--out", tmp_path / "report.html")
    assert code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Cross-validation</h2>" in page
    assert "Tested on images that were trained on" not in page


def test_shots_from_the_command_to_the_report(root, tmp_path, command):
    words = ["train", root, "--head", "linear", "--shots", "1,2,4,8", "--draws", 2, "--out", tmp_path / "run", *QUICK]
    code, out, err = command(*words)
    assert code == 0, err
    results = json.loads(RunPaths(tmp_path / "run").results("test").read_text())
    said = " ".join(out.split())
    for point in results["learning_curve"]["points"]:
        assert f"{point['shots']} a class: top-1 {100 * point['metrics']['top1']['mean']:.1f}" in said
    assert results["learning_curve"]["told"] in said
    assert "over 2 draws of 8 a class" in said
    code, _, _ = command("report", tmp_path / "run", "--out", tmp_path / "report.html")
    assert code == 0
    assert "<h2>Few labels</h2>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--folds", "1"], 2, ["folds", "greater than or equal to 2"]),
        (["--folds", "20"], 2, ["fewer images than 20 folds", "--folds 20", "use --folds 13"]),
        (
            ["--folds", "3", "--group", "patient"],
            2,
            ["has no groups, and no 'patient'", "--group patient", "loffta label"],
        ),
        (["--folds", "1000"], 2, ["1000 folds cannot be made of 40 images", "use --folds 40"]),
        (["--folds", "3", "--group", "a\x1b[31m"], 2, ["no 'a\N{REPLACEMENT CHARACTER}[31m'"]),
        (["--group", "patient"], 2, ["--group is for --folds K"]),
        (["--shots", "1,x"], 2, ["it must be numbers with commas between them"]),
        (["--shots", "99"], 2, ["not 99 images of every class to draw from", "--shots 99", "draw 13 at most"]),
        (["--folds", "3", "--search"], 2, ["--folds and --search exclude each other", "--set lr="]),
    ],
)
def test_mistakes_are_messages(words, code, parts, root, tmp_path, command):
    result = command("train", root, "--head", "linear", "--out", tmp_path / "run", *words)
    assert_error(result, code, *parts)
    assert not (tmp_path / "run").exists()


def test_images_without_a_cache_have_no_folds(tmp_path, command):
    words = ["train", "--online", "demo:digits", "--backbone", "test_vit", "--weights", "random:0", "--image-px", 32]
    result = command(*words, "--folds", 3, "--out", tmp_path / "run", "--device", "cpu")
    assert_error(result, 2, "--folds and --online exclude each other", "loffta extract")
