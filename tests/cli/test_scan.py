"""`loffta scan` as it is typed."""

import json

import pytest

from tests.caches import toy_cache


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toys") / "cache").paths.root


def test_a_table_a_file_and_json(command, toys, tmp_path):
    code, out, _ = command("scan", toys, "--device", "cpu", "--out", tmp_path / "scan.csv", "--json")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["layer", "head", "top-1", "%", "95", "%", "CI", "rank"]
    found = json.loads(lines[-1])
    assert {(row["tap"], row["head"]) for row in found["rows"]} == {
        (tap, head) for tap in ("a.0", "a.1") for head in ("knn", "ncm", "ridge")
    }
    assert all(row["score"] == 1 and row["tied"] and row["rank"] == [1, 6] for row in found["rows"])
    assert len((tmp_path / "scan.csv").read_text().splitlines()) == 1 + 6
    assert f"written to {tmp_path / 'scan.csv'}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--heads", "knn,svm"), "heads.1"),
        (("--heads", ""), "at least 1 item"),
        (("--pooling", "max"), "pooling.0"),
        (("--shots", "1,x"), "shots.1"),
        (("--shots", "0"), "from 1 to"),
        (("--folds", "2"), "from 3 to"),
        (("--k", "0"), "from 1 to"),
        (("--temperature", "0"), "temperature"),
        (("--k", "41"), "choose --k of at most 40"),
        (("--features", "god"), "did you mean good"),
        (("--pooling", "cls"), "use another pooling"),
        (("--out", "table.doc"), "end its name with"),
        (("--group", "patient", "--folds", "3"), "has no groups"),
    ],
)
def test_what_cannot_be_is_told(command, toys, options, message):
    code, _, err = command("scan", toys, "--device", "cpu", *options)
    assert code in (1, 2)
    assert message in err
