"""`loffta label` and the commands that know the sets it makes, as a user meets them."""

import json

import pytest

import loffta
from loffta.store.cache import Cache
from tests.cli.small import assert_error


def frozen(root):
    files = [p for p in root.rglob("*") if p.is_file() and "labels" not in p.parts]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.fixture
def file(cache, tmp_path):
    """Digits as odd or even, of the first 100 images; and one that is no image."""
    table = Cache.open(cache).table
    rows = [
        f"{key},{'odd' if label % 2 else 'even'},p{i % 7}"
        for i, (key, label) in enumerate(zip(table.keys, table.labels, strict=True))
    ]
    (tmp_path / "parity.csv").write_text("image,parity,patient\nstrange.png,odd,\n" + "\n".join(rows[:100]))
    return tmp_path / "parity.csv"


def test_from_a_file_to_a_set_and_back(command, cache, file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    before = frozen(cache)
    words = ["label", cache, file, "--label", "parity", "--group", "patient", "--json"]
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "added labels 'parity': 100 of 1797 labelled, single-label, 2 classes (train 1000, test 797)" in out
    assert "; groups of 'patient': 7\n" in out
    assert "parity.csv has a row for 100 of 1797 images\n  rows without an image: 1: strange.png\n" in out
    assert "images without a row: 1697: " in out
    told = json.loads(out.splitlines()[-1])
    assert (told["matched"], told["strangers"], told["replaced"]) == (100, ["strange.png"], False)
    assert command(*words)[1].startswith("replaced labels 'parity'")
    assert command("label", cache, file, "--split", "parity", "--name", "halves")[0] == 0
    code, out, _ = command("info", cache, "--json")
    assert "\n  labels 'source': 1797 of 1797 labelled, single-label, 10 classes (train 1000, test 797)\n" in out
    assert "\n  labels 'halves': 1797 of 1797 labelled, single-label, 10 classes (even 48, odd 52)\n" in out
    held = json.loads(out.splitlines()[-1])["labels"]
    assert [(s["name"], s["labelled"], s["groups"]) for s in held] == [
        ("source", 1797, None),
        ("halves", 1797, None),
        ("parity", 100, 7),
    ]
    opened = loffta.open_cache(cache, labels="parity")
    assert (opened.classes, opened.label_sets) == (("even", "odd"), ["halves", "parity"])
    assert opened.table().slice(0, 1).to_pylist()[0]["group"] == "p0"
    labels = loffta.open_cache(cache).labels("even", name="halves")
    assert sorted({*labels.tolist()}) == [0, 2, 4, 6, 8]
    assert command("verify", cache)[0] == 0
    assert frozen(cache) == before
    assert command("drop", cache, "labels:halves", "--yes")[0] == 0
    assert Cache.open(cache).paths.label_names() == ["parity"]


def test_damage_and_what_cannot_be_dropped(command, cache, file):
    command("label", cache, file, "--label", "parity")
    path = Cache.open(cache).paths.label_set("parity")
    path.write_bytes(path.read_bytes()[:-9])
    code, out, err = command("verify", cache)
    assert code == 4
    assert "labels/parity: these labels are not as they were written" in out
    assert "1 set of labels is damaged" in err
    assert "--name parity" in err
    code, out, _ = command("verify", cache, "--repair")
    assert (code, path.exists()) == (4, True)
    code, _, err = command("info", cache)
    assert code == 4
    tried = command("train", cache, "--labels", "parity", "--head", "linear", "--out", cache.parent / "run")
    assert_error(tried, 4, "these labels are not as they were written", "make it anew with `loffta label")
    tried = command("drop", cache, "labels:source", "--yes")
    assert_error(tried, 2, "'source' is what the image set itself says", "extract")
    tried = command("drop", cache, "labels:../x", "--yes")
    assert_error(tried, 2, "unknown set of labels", "known: source, parity")
    assert command("label", cache, file, "--label", "parity")[0] == 0  # which mends it
    assert command("verify", cache)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "../x"], "is no plain name"),
        (["--name", "a\x07b"], "is no plain name"),
        (["--name", "source"], "is what the image set itself says"),
        (["--label", "parity", "--value", "patient"], "a set has labels or values, not both"),
        (["--label", "klass"], "unknown column 'klass'"),
        ([], "the file has no column label"),
    ],
)
def test_what_is_refused(command, cache, file, words, message):
    code, _, err = command("label", cache, file, *words)
    assert code == 2
    assert message in err
    assert "\x07" not in err
    assert not Cache.open(cache).paths.labels.exists()
