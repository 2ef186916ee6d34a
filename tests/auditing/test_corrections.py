"""Corrections: what they propose, what `loffta label` makes of them, and names that a spreadsheet would run."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from loffta.auditing.corrections import check_file, propose, write_corrections
from loffta.auditing.found import Audit, CopyGroup, LabelError
from loffta.errors import UsageError
from loffta.store.label_file import read_label_file
from loffta.store.table import ImageTable

KEYS = ["a/0.png", "=cmd|'/C calc'!A0.png", "<b>.png", "-1.png", 'quo"te,.png', "@x/y.png", "a/6.png"]
SPLITS = ["train", "test", "train", "train", "val", "train", ""]


def made(keys=KEYS, classes=("cat", "dog"), splits=SPLITS):
    table = ImageTable("s", list(keys), np.full(7, 5), list(splits), np.array([0, 1, 0, 1, 0, -1, 0]), tuple(classes))
    groups = (
        CopyGroup((0, 1, 3), 0.99, ("train", "test"), True),
        CopyGroup((2, 5), 1.0, ("train",), False),
        CopyGroup((1, 4), 0.98, ("test", "val"), False),
    )
    errors = (LabelError(2, 1, chance_given=0.1, chance=0.9), LabelError(3, 0, chance_given=0.2, chance=0.7))
    return Audit(table, ("f",), np.arange(7), 0.9, 0.1, 0.05, groups, (), {}, errors)


def test_proposals():
    """Training copies of other splits leave theirs; copies within a split, or between two others, stay."""
    found = propose(made(), "train")
    assert found["key"] == KEYS
    assert found["label"] == ["cat", "dog", "dog", "cat", "cat", None, "cat"]
    assert found["split"] == [None, "test", "train", None, "val", "train", None]
    leak = "a copy is in another split"
    wrong = "probably another class"
    assert found["why"] == [leak, None, wrong, f"{wrong}; {leak}", None, None, None]
    assert found["confidence"] == [0.99, None, 0.9, 0.7, None, None, None]


def test_which_split_is_trained_on_is_the_users():
    assert propose(made(), "test+val")["split"] == ["train", None, "train", "train", "val", "train", None]


@pytest.mark.parametrize("name", ["fixes.csv", "fixes.parquet", "FIXES.CSV"])
def test_the_file_is_read_as_labels(tmp_path, name):
    audit = made()
    assert write_corrections(audit, tmp_path / name, "train") == 3
    joined = read_label_file(tmp_path / name, audit.table)
    assert (joined.matched, joined.strangers, joined.unknown) == (7, [], [])
    table = joined.said.on(audit.table, where="here")
    assert [table.class_name(row) for row in range(7)] == ["cat", "dog", "dog", "cat", "cat", None, "cat"]
    assert table.splits == ["", "test", "train", "", "val", "train", ""]


def test_no_cell_of_a_csv_begins_like_a_formula(tmp_path):
    write_corrections(made(), tmp_path / "fixes.csv", "train")
    with (tmp_path / "fixes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["key", "label", "split", "why", "confidence"]
    assert [row[0] for row in rows[1:]] == [f"./{key}" if key[0] in "=-@" else key for key in KEYS]
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert rows[3][3:] == ["probably another class", "0.900"]


def test_parquet_has_keys_as_they_are(tmp_path):
    write_corrections(made(), tmp_path / "fixes.parquet", "train")
    assert pq.read_table(tmp_path / "fixes.parquet")["key"].to_pylist() == KEYS


@pytest.mark.parametrize("bad", [{"classes": ("=1+1", "dog")}, {"splits": ["+train", *SPLITS[1:]]}])
def test_names_that_a_spreadsheet_would_run_need_parquet(tmp_path, bad):
    with pytest.raises(UsageError, match=r"(?s)as a formula.*remedy: write fixes.parquet"):
        write_corrections(made(**bad), tmp_path / "fixes.csv", "train")
    assert not (tmp_path / "fixes.csv").exists()
    write_corrections(made(**bad), tmp_path / "fixes.parquet", "train")


def test_line_breaks_in_keys_stay_in_their_cell(tmp_path):
    keys = ["new\nline.png", "\ttab.png", *KEYS[2:]]
    write_corrections(made(keys=keys), tmp_path / "fixes.csv", "train")
    with (tmp_path / "fixes.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:3] == ["new\nline.png", "./\ttab.png"]


def test_labels_are_proposed_only_where_images_have_one_class(tmp_path):
    audit = made()
    table = ImageTable("s", KEYS, np.full(7, 5), SPLITS, np.full(7, -1), ("cat", "dog"), label_sets=[(0, 1)] * 7)
    found = propose(Audit(table, ("f",), audit.rows, 0.9, 0.1, 0.05, audit.copies, (), {}), "train")
    assert list(found) == ["key", "split", "why", "confidence"]


@pytest.mark.parametrize("name", ["fixes.txt", "fixes", ""])
def test_other_files_are_refused_at_once(tmp_path, name):
    with pytest.raises(UsageError, match=r"(?s)ends in .csv or .parquet.*name it fixes.csv"):
        check_file(tmp_path / name, "--fix")
