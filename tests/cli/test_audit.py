"""`loffta audit`: a correction is two commands, and everything else of the command line."""

import inspect
import json
import unicodedata

import numpy as np
import pytest
from loffta_cli.audit import command
from loffta_cli.main import main

import loffta
from tests.auditing.planted import plant


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted") / "cache", n=300, copied=0.03)


def run(words, capsys):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_correction_is_two_commands(planted, tmp_path, capsys):
    cache, file = str(planted.cache.paths.root), str(tmp_path / "fixes.csv")
    first = run(["audit", cache, "--fix", file, "--device", "cpu"], capsys)
    wrong = {f"{row:04d}.png" for row in np.flatnonzero(planted.wrong)}
    told = {error["image"] for error in first["label_errors"]}
    assert len(told & wrong) >= 6
    assert len(first["copies"]) == 9
    assert first["corrections"] == len(
        told | {key for g in first["copies"] for key in g["images"][:2] if is_train(planted, key)}
    )
    labelled = run(["label", cache, file, "--name", "fixed"], capsys)
    assert labelled
    again = run(["audit", cache, "--labels", "fixed", "--device", "cpu"], capsys)
    assert again["copies"] == []
    assert {error["image"] for error in again["label_errors"]} & told == set()
    assert again["images"] == first["images"] - 9
    straight = run(["audit", cache, "--labels", file, "--device", "cpu"], capsys)
    assert straight | {"corrections": None} == again


def is_train(planted, key):
    return planted.cache.table.splits[planted.cache.table.keys.index(key)] == "train"


@pytest.mark.parametrize("width", [200, 80, 40])
def test_what_is_printed(planted, tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    cache, page = str(planted.cache.paths.root), str(tmp_path / "audit.html")
    assert main(["audit", cache, "--out", page, "--show", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert max(len(unicodedata.normalize("NFC", line)) for line in out.splitlines()) <= width
    text = "".join(out.split())
    assert f"page:{page}" in text
    assert "leaks9ofthesegroupslieinseveralsplits" in text
    assert "(theworst2of9)" in text
    assert (tmp_path / "audit.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fix", "fixes.txt"], "ends in .csv or .parquet"),
        (["--fix", "fixes.csv", "--train-on", "tran"], "did you mean train?"),
        (["--out", "."], "this is a folder"),
        (["--labels", "nobody"], "nobody"),
        (["--folds", "1"], "use 2 to 100"),
        (["--folds", "101"], "use 2 to 100"),
        (["--near", "2"], "is no fraction"),
    ],
)
def test_options_that_cannot_be_used_end_at_once(planted, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", str(planted.cache.paths.root), *words, "--device", "cpu"]) in (1, 2)
    assert message in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_defaults_are_those_of_the_function():
    defaults = {name: p.default for name, p in inspect.signature(loffta.audit).parameters.items()}
    told = {"show" if p.name == "shown" else p.name: p.default for p in command.params if p.name != "as_json"}
    assert set(told) == set(defaults) - {"progress", "stop"}
    same = {name for name, default in told.items() if isinstance(default, (int, float, str)) and name != "features"}
    assert {name: told[name] for name in same} == {name: defaults[name] for name in same}
    assert {"pooling", "near", "folds", "seed", "show", "device", "train_on"} <= same
