"""Files of labels joined to images: what is found, and every way in which a file can be wrong."""

import dataclasses
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loffta.errors import LofftaError, UsageError
from loffta.store.label_file import LabelColumns, read_label_file
from loffta.store.labels import Annotations
from loffta.store.table import ImageTable

KEYS = ["train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "test/dog/1.png"]


def images(**changes):
    table = ImageTable(
        "folder:pets",
        KEYS,
        np.array([10, 20, 30, 40]),
        ["train", "train", "train", "test"],
        np.array([0, 0, 1, 1]),
        ("cat", "dog"),
    )
    return dataclasses.replace(table, **changes)


def joined(folder, text, table=None, name="mine.csv", **columns):
    (folder / name).write_text(text, encoding="utf-8")
    return read_label_file(folder / name, table or images(), LabelColumns(**columns))


def test_by_key(tmp_path):
    found = joined(tmp_path, "image,label\ntest/dog/1.png,wolf\n./train/cat//2.png,cat\nother.png,cat\n")
    assert found.said.labels == [None, 1 - 1, None, 1]
    assert found.said.classes == ("cat", "wolf")
    assert (found.matched, found.by_file_name, found.strangers) == (2, 0, ["other.png"])
    assert found.unknown == ["train/cat/1.png", "train/dog/3.png"]
    assert (found.said.splits, found.said.groups) == (None, None)


def test_by_file_name_where_that_is_unique(tmp_path):
    """`1.png` is two images; of the images that the file names so with other folders, it says nothing."""
    found = joined(tmp_path, "image,label\n2.png,a\nelsewhere/3.png,b\nelsewhere/1.png,c\n")
    assert found.said.labels == [None, 0, 1, None]
    assert (found.matched, found.by_file_name, found.strangers) == (2, 2, ["elsewhere/1.png"])


def test_where_an_image_is_now_and_where_it_was(tmp_path):
    table = images(moved={0: "train/dog/1.png"})
    assert joined(tmp_path, "image,label\ntrain/dog/1.png,x\n", table).said.labels == [0, None, None, None]
    assert joined(tmp_path, "image,label\ntrain/cat/1.png,x\n", table).said.labels == [0, None, None, None]


def test_classes_have_the_order_of_the_image_set(tmp_path):
    table = images(classes=("dog", "cat"), labels=np.array([1, 1, 0, 0]))
    text = "image,label\n" + "".join(
        f"{key},{name}\n" for key, name in zip(KEYS, ["cat", "dog", "dog", ""], strict=True)
    )
    found = joined(tmp_path, text, table).said
    assert (found.classes, found.labels) == (("dog", "cat"), [1, 0, 0, None])
    found = joined(tmp_path, text.replace("cat\n", "bird\n"), table).said
    assert (found.classes, found.labels) == (("bird", "dog"), [0, 1, 1, None])


def test_every_column_by_its_name_or_by_an_option(tmp_path):
    text = "key;value;split;group\ntrain/cat/1.png;0.5;Training;ann\ntest/dog/1.png;;NaN;\n"
    said = joined(tmp_path, text).said
    assert (said.kind, said.labels, said.splits) == ("regression", [0.5] + [None] * 3, ["train"] + [None] * 3)
    assert (said.groups, said.group_column) == (["ann", None, None, None], "group")
    text = "file,age,fold,patient\ntrain/cat/1.png,7,a,12\ntest/dog/1.png,9,b,13\n"
    options = {"key": "file", "value": "age", "split": "fold", "group": "patient"}
    said = joined(tmp_path, text, **options).said
    assert (said.labels, said.splits) == ([7.0, None, None, 9.0], ["a", None, None, "b"])
    assert (said.groups, said.group_column) == (["12", None, None, "13"], "patient")
    said = joined(tmp_path, text, key="file", label="age").said
    assert (said.kind, said.classes) == ("single-label", ("7", "9"))
    said = joined(tmp_path, "image,labels\ntrain/cat/1.png,cat;dog\ntest/dog/1.png,;\n").said
    assert (said.kind, said.labels) == ("multi-label", [(0, 1), None, None, ()])
    said = joined(tmp_path, "image,split\ntrain/cat/1.png,a\n").said
    assert (said.kind, said.labels, said.splits) == (None, None, ["a", None, None, None])


def test_parquet_of_anyone_and_of_loffta(tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"image": KEYS, "label": [1, 2, None, 1], "more": [b""] * 4}), path)
    assert read_label_file(path, images()).said.labels == [0, 1, None, 0]
    whole = Annotations.of(images(splits=["a", "b", "a", "b"]))
    path.write_bytes(whole.to_parquet())
    assert read_label_file(path, images()).said == whole
    with pytest.raises(LofftaError, match="these labels are of another image set"):
        read_label_file(path, images(sizes=np.array([1, 2, 3, 4])))


NFC = unicodedata.normalize("NFC", "train/cat/é.png")
FAULTS = {
    "nothing matches": (
        "image,label\nx.png,cat\ny.png,dog\n",
        {},
        "none of the 2 keys is that of an image: 'x.png' there",
    ),
    "twice": (
        "image,label\ntrain/cat/1.png,cat\ntrain/cat/1.png,dog\n",
        {},
        "row 2: 'train/cat/1.png' is the image of row 1, too",
    ),
    "twice by name": ("image,label\ntrain/cat/2.png,cat\n2.png,dog\n", {}, "row 2: '2.png' is the image of row 1, too"),
    "several": ("image,label\n1.png,cat\n", {}, "row 1: 2 images have the file name '1.png': give the whole key"),
    "case": (
        "image,label\ntrain/Cat/1.png,cat\ntrain/cat/2.png,cat\n",
        {},
        "row 1: 'train/Cat/1.png' differs from 'train/cat/1.png' in case or Unicode form alone",
    ),
    "no key": ("image,label\n,cat\nNaN,cat\n", {}, "row 1: the key is empty"),
    "no column": ("image,klass\ntrain/cat/1.png,cat\n", {}, "the file has no column label; it has: 'image', 'klass'"),
    "no image": ("path,label\ntrain/cat/1.png,cat\n", {}, "the file has no column image; it has: 'path', 'label'"),
    "unknown column": ("image,label\na,b\n", {"label": "lable"}, "unknown column 'lable'(.|\n)*did you mean label"),
    "both options": ("image,a,b\nx,1,2\n", {"label": "a", "value": "b"}, "a set has labels or values, not both"),
    "both columns": ("image,label,value\nx,1,2\n", {}, "the file has the columns label and value, and a set has one"),
    "column twice": ("image,label,label\nx,1,2\n", {}, "the column 'label' is there twice"),
    "one for two": ("image,label\nx,1\n", {"split": "label"}, "the column 'label' is there twice"),
    "nan": ("image,value\ntrain/cat/1.png,NaN\ntrain/cat/2.png,\n", {}, "no cell of the column 'value' holds a label"),
    "inf": ("image,value\ntrain/cat/1.png,inf\ntrain/cat/2.png,1\n", {}, "row 1: 'inf' is no number"),
    "empty": ("", {}, "the file has no column image; it has: none"),
    "header alone": ("image,label\n", {}, "the file has no rows"),
    "alike": (
        "image,label\ntrain/cat/1.png,Wolf\ntrain/cat/2.png,wolf \ntrain/dog/3.png,wolf\n",
        {},
        "names of classes or splits that look the same: 'Wolf' and 'wolf'",
    ),
    "control": ("image,label\ntrain/cat/1.png,a\x1b[2J\n", {}, r"row 1: the label 'a\\x1b\[2J': it holds a control"),
    "split": ("image,split\ntrain/cat/1.png,a+b\n", {}, r"row 1: the split cannot be 'a\+b'"),
    "cells": ("image,label\ntrain/cat/1.png,a,b\n", {}, "row 1: 3 cells under 2 columns"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_told(tmp_path, name):
    text, columns, message = FAULTS[name]
    with pytest.raises(UsageError, match=message) as caught:
        joined(tmp_path, text, **columns)
    assert "\x1b" not in str(caught.value)
    assert "mine.csv" in caught.value.where


def test_a_key_in_another_form_of_unicode(tmp_path):
    table = images(keys=[NFC, *KEYS[1:]])
    text = f"image,label\n{unicodedata.normalize('NFD', NFC)},cat\ntrain/cat/2.png,cat\n"
    with pytest.raises(UsageError, match="in case or Unicode form alone"):
        joined(tmp_path, text, table)


def test_files_that_are_none(tmp_path):
    for name, message in (("none.csv", "there is no such file"), ("a.txt", "neither .csv, .tsv nor .parquet")):
        (tmp_path / "a.txt").touch()
        with pytest.raises(UsageError, match=message):
            read_label_file(tmp_path / name, images())
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="cannot read the table"):
        read_label_file(tmp_path / "bad.parquet", images())
