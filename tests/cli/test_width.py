"""What commands print is no wider than the terminal, and nothing of it is lost; `train` ends with what to type next."""

import errno
import re
import shlex
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loffta_cli.main import main
from PIL import Image

from loffta.backbones import fetch as fetching
from loffta.files.os_words import explain

WIDTHS = [40, 80]
CLASSES = ["アカゲラとコゲラの写真", "a class with a name of several words that is long", "x"]
SET = "a_set_of_pictures_in_a_folder_with_quite_a_long_name"
EXTRACT = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32", "--taps", "all", "--device", "cpu"]
TRAIN = ["--head", "linear", "--set", "epochs=2", "--seeds", "2", "--device", "cpu"]
LONG = "annotations_of_a_set_of_pictures_with_quite_a_long_name"
RUN = "a run with a name/that is long"


def wide(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A set, its cache and a run."""
    root = tmp_path_factory.mktemp("width")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            (root / SET / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
                    root / SET / split / name / f"{i}.png"
                )
    (root / SET / "train" / CLASSES[0] / "broken.png").write_bytes(b"no picture")
    (root / f"{LONG}.csv").write_text(f"image,label\ntrain/{CLASSES[0]}/0.png,{CLASSES[0]}\nno such image.png,x\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("COLUMNS", "80")
        assert main(["extract", SET, "--cache", "cache", "--max-bad-frac", "1", *EXTRACT]) == 0
        assert main(["train", "cache", *TRAIN, "--out", RUN]) == 0
        assert main(["label", "cache", f"{LONG}.csv"]) == 0
    return root


@pytest.fixture
def printed(place, monkeypatch, capsys):
    """What a command writes to stdout at a width."""
    monkeypatch.chdir(place)

    def run(words, width, code=0):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(words) == code
        return capsys.readouterr().out

    return run


COMMANDS = {
    "info": ["info", "cache"],
    "verify": ["verify", "cache", "--images", "--recompute", "2", "--device", "cpu"],
    "plan": ["plan", SET, "--cache", "new", "--sample", "0", *EXTRACT],
    "extract": ["extract", SET, "--cache", "cache", "--max-bad-frac", "1", *EXTRACT],
    "train": [
        "train",
        "cache",
        "--head",
        "linear",
        "--set",
        "epochs=2",
        "--seeds",
        "2",
        "--device",
        "cpu",
        "--out",
        RUN,
    ],
    "evaluate": ["evaluate", RUN, "--split", "test", "--device", "cpu"],
    "report": ["report", RUN, "--out", "report.html"],
    "models": ["models", "dinov2"],
    "label": ["label", "cache", f"{LONG}.csv"],
    "audit": ["audit", "cache", "--out", f"{LONG}.html", "--device", "cpu"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_wider_and_nothing_is_lost(printed, name):
    found = {width: printed(COMMANDS[name], width) for width in (200, 80, 40)}
    for width, out in found.items():
        assert max(map(wide, out.splitlines())) <= width
    text = "".join(found[80].split())  # at 40, names of the first column are broken beside the figures
    words = [word for word in found[200].split() if re.search("[A-Za-z]", word)]  # how much is free changes
    assert len(words) > 5
    assert [word for word in words if word.strip(",;:") not in text] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_bench_predict_and_drop(printed, place, width):
    bench = ["bench", "cache", "--seconds", "0.05", "--device", "cpu"]
    predict = ["predict", RUN, SET, "--out", "predictions.parquet", "--max-bad-frac", "1", "--device", "cpu"]
    shutil.copytree(place / "cache", place / f"copy-{width}")
    (store,) = (path.name for path in (place / "cache" / "stores").iterdir())
    for words in (bench, predict, ["drop", f"copy-{width}", store, "--yes"]):
        assert max(map(wide, printed(words, width).splitlines())) <= width


def test_fetch(printed, monkeypatch):
    found = SimpleNamespace(downloaded=True, n_bytes=10**8, path="/scratch/" + "h" * 80)
    monkeypatch.setattr(fetching, "fetch", lambda name: found)
    monkeypatch.setattr("loffta_cli.fetch.asdict", vars)
    assert max(map(wide, printed(["fetch", "dinov2-s"], 80).splitlines())) <= 80


@pytest.mark.parametrize("width", WIDTHS)
def test_train_ends_with_where_it_wrote_and_what_to_type(printed, width):
    out = printed(COMMANDS["train"], width)
    told, _, typed = out.partition("next:\n")
    files = "results.json, predictions.parquet, seed-0/head.safetensors, seed-1/head.safetensors"
    assert "".join(f"written to {RUN}: {files}".split()) in "".join(told.split())
    joined = typed.replace("\\\n", "").splitlines()
    assert [shlex.split(line) for line in joined] == [
        ["loffta", "report", RUN],
        ["loffta", "predict", RUN, "IMAGES", "--out", "predictions.parquet"],
    ]


def test_results_that_cannot_be_saved_are_shown(place, printed, monkeypatch, capsys):
    """As on a file system that is mounted read-only."""
    expected = printed(COMMANDS["evaluate"], 200)
    before = {path: path.read_bytes() for path in (place / RUN).rglob("*") if path.is_file()}

    def refuse(final, data):
        raise explain(OSError(errno.EROFS, "Read-only file system"), final)

    monkeypatch.setattr("loffta.runs.run.replace_file", refuse)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluate", RUN, RUN, "--split", "test", "--device", "cpu", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out.count(expected) == 2
    assert '"metrics"' in out.splitlines()[-1]
    assert err.startswith("error: the results are not saved: ")
    assert "loffta evaluate COPY" in err
    assert {path: path.read_bytes() for path in (place / RUN).rglob("*") if path.is_file()} == before


def test_commands_print_through_what_wraps():
    """`show` and `show_lines` are the only ways to stdout."""
    sources = (Path(__file__).parents[2] / "cli").glob("*.py")
    for path in sources:
        if path.name not in ("common.py", "main.py"):
            calls = re.findall(r"click\.echo\(.*|\bprint\(.*", path.read_text())
            assert [call for call in calls if "err=True" not in call] == [], path.name
