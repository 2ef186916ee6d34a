"""`voc:ROOT`: a year of Pascal VOC as it is unpacked, and what may be wrong with it."""

import contextlib
from xml.parsers.expat import ExpatError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loffta.errors import UsageError
from loffta.images.sources import open_source
from loffta.images.targets import decode_target
from loffta.images.voc import object_names
from loffta.targets import IGNORE
from tests.imagesets import VOC_OBJECT, VOC_XML, class_map, encoded, put, voc


@pytest.fixture
def year(tmp_path):
    voc(tmp_path)
    return tmp_path / "VOCdevkit" / "VOC2012"


def problems(spec):
    with pytest.raises(UsageError) as caught:
        open_source(spec).listing()
    return caught.value.what


def test_the_classification_set(year, capsys):
    source = open_source(f"voc:{year}")
    table = source.listing()
    names = ["2007_000001", "2008_000003", "2007_000002", "2008_000004"]
    assert table.keys == [f"JPEGImages/{name}.jpg" for name in names]
    assert table.splits == ["train", "train", "val", "test"]
    assert table.classes == ("cat", "dog", "person")
    assert [table.class_names(row) for row in range(4)] == [("dog", "person"), ("cat",), (), None]
    assert table.sizes.tolist() == [len(source.read(key)) for key in table.keys]
    assert table.targets == {
        "mask": ["SegmentationClass/2007_000001.png", None, "SegmentationClass/2007_000002.png", None],
        "instances": ["SegmentationObject/2007_000001.png", None, "SegmentationObject/2007_000002.png", None],
    }
    assert source.read("SegmentationClass/2007_000001.png") == class_map(9)
    assert len(table.target_classes["mask"]) == 21
    assert [table.target_classes["mask"][i] for i in (0, 1, 12, 20)] == ["background", "aeroplane", "dog", "tvmonitor"]
    mask = decode_target("mask", class_map(9), classes=table.target_classes["mask"], size=(8, 6)).map
    assert (mask[0, 0], set(np.unique(mask).tolist())) == (IGNORE, {0, 1, 2, IGNORE})
    assert capsys.readouterr().err == f"voc:{year}: 1 of 4 images have no file in Annotations, so no labels\n"


def test_the_segmentation_set(year):
    table = open_source(f"voc:{year}#segmentation").listing()
    assert table.keys == ["JPEGImages/2007_000001.jpg", "JPEGImages/2007_000002.jpg"]
    assert (table.splits, table.source) == (["train", "val"], f"voc:{year}#segmentation")
    assert table.targets["mask"] == ["SegmentationClass/2007_000001.png", "SegmentationClass/2007_000002.png"]


def test_a_devkit_of_one_year_and_the_folder_above_it(tmp_path, year):
    digest = open_source(f"voc:{year}").listing().digest
    for spec in (f"voc:{tmp_path}", f"voc:{tmp_path}/VOCdevkit"):
        table = open_source(spec).listing()
        assert (table.digest, table.source) == (digest, f"voc:{year}")
    put(year.parent / "VOC2007" / "ImageSets" / "Main" / "test.txt", "")
    with pytest.raises(
        UsageError, match=r"holds 2 years of Pascal VOC: VOC2007, VOC2012\n.*\n  remedy: give the folder"
    ):
        open_source(f"voc:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="this folder holds no Pascal VOC"):
        open_source(f"voc:{tmp_path}/empty")


def test_an_unknown_part(year):
    with pytest.raises(UsageError, match=r"unknown part of Pascal VOC 'segmentatoin'\n.*\n  remedy: did you mean segm"):
        open_source(f"voc:{year}#segmentatoin")


def test_a_folder_with_a_number_sign_in_its_name(tmp_path):
    (tmp_path / "a#b").mkdir()
    voc(tmp_path / "a#b")
    assert len(open_source(f"voc:{tmp_path}/a#b").listing()) == 4
    assert len(open_source(f"voc:{tmp_path}/a#b#segmentation").listing()) == 2


def test_trainval_alone(year, capsys):
    for name in ("train", "val"):
        (year / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert open_source(f"voc:{year}").listing().split_sizes() == {"train": 3, "test": 1}
    assert "no train.txt and val.txt, so all of trainval.txt is split train\n" in capsys.readouterr().err


def test_an_image_in_a_folder_of_its_own(year):
    put(year / "JPEGImages" / "a.b" / "c.d.jpg", encoded(1, "JPEG"))
    put(
        year / "Annotations" / "a.b" / "c.d.xml",
        VOC_XML.format(name="c.d", objects=VOC_OBJECT.format(name="<![CDATA[x]]>")),
    )
    put(year / "ImageSets" / "Main" / "val.txt", "a.b/c.d\n")
    table = open_source(f"voc:{year}").listing()
    assert table.class_names(table.keys.index("JPEGImages/a.b/c.d.jpg")) == ("x",)


def test_no_lists(year):
    main = year / "ImageSets" / "Main"
    for path in main.iterdir():
        path.unlink()
    assert problems(f"voc:{year}") == "no lists in ImageSets/Main"
    put(main / "val.txt", "\n")
    assert problems(f"voc:{year}") == "the lists name no images"


def test_all_that_is_wrong_at_once(tmp_path, year):
    put(tmp_path / "secret.jpg", b"s")
    (year / "JPEGImages" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    ids = ["../../../secret", "2007_000099", "link", "2007_000001", "a\0b", "2007_000001"]
    put(year / "ImageSets" / "Main" / "train.txt", "\n".join(ids))
    what = problems(f"voc:{year}")
    assert what == (
        "5 problems in the image set: train.txt line 1: 'JPEGImages/../../../secret.jpg': the path holds '..'; "
        "train.txt line 2: 'JPEGImages/2007_000099.jpg': there is no such file; "
        "train.txt line 3: 'JPEGImages/link.jpg': it leaves the image set's folder; "
        "train.txt line 5: 'JPEGImages/a\\x00b.jpg': the path holds a control character or is not UTF-8; "
        "train.txt line 6: 'JPEGImages/2007_000001.jpg': listed before, in train.txt line 4"
    )
    put(year / "ImageSets" / "Main" / "train.txt", b"\xff\n")
    assert "ImageSets/Main/train.txt cannot be read ('utf-8' codec" in problems(f"voc:{year}")


@pytest.mark.parametrize(
    ("xml", "fault"),
    [
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "it declares a document type, which no annotation needs"),
        ('<?xml version="1.0" encoding="utf-99"?><annotation/>', "unknown encoding"),
        (f"<annotation>{VOC_OBJECT.format(name='')}</annotation>", "'' cannot be a class"),
        (f"<annotation>{VOC_OBJECT.format(name='a&#10;b')}</annotation>", "'a\\nb' cannot be a class"),
    ],
)
def test_annotations_that_cannot_be_used(year, xml, fault):
    put(year / "Annotations" / "2007_000001.xml", xml)
    assert problems(f"voc:{year}").startswith(f"1 problem in the image set: Annotations/2007_000001.xml: {fault}")


def test_a_mask_or_annotation_that_leads_out(tmp_path, year):
    put(tmp_path / "secret", b"s")
    for path in (year / "SegmentationClass" / "2007_000001.png", year / "Annotations" / "2007_000001.xml"):
        path.unlink()
        path.symlink_to(tmp_path / "secret")
    assert problems(f"voc:{year}") == (
        "2 problems in the image set: Annotations/2007_000001.xml: it leaves the image set's folder; "
        "'SegmentationClass/2007_000001.png': it leaves the image set's folder"
    )


def test_names_of_objects_only():
    """Parts of objects have names, and so has the owner: they are no classes; markup in a name is text."""
    xml = (
        "<annotation><owner><name>me</name></owner><object><name> dog\n</name><part><name>head</name></part></object>"
        "<object><name>&lt;b&gt;<!-- - -->x</name></object></annotation>"
    )
    assert object_names(xml.encode()) == ["dog", "<b>x"]


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data):
    with contextlib.suppress(ValueError, LookupError, ExpatError):
        assert all(name == name.strip() for name in object_names(data))
