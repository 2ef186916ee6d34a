"""`coco:ROOT`: COCO as it is unpacked, and what may be wrong with it."""

import json

import pytest

from loffta.errors import UsageError
from loffta.images.coco import parse_instances
from loffta.images.sources import open_source
from tests.imagesets import coco, coco_annotations, put


@pytest.fixture
def root(tmp_path):
    coco(tmp_path / "coco")
    return tmp_path / "coco"


def problems(root):
    with pytest.raises(UsageError) as caught:
        open_source(f"coco:{root}").listing()
    assert caught.value.where == f"SOURCE coco:{root}#2017"
    return caught.value.what


def train(root, *arguments, **options):
    put(root / "annotations" / "instances_train2017.json", json.dumps(coco_annotations(*arguments, **options)))


def test_a_year(root, capsys):
    source = open_source(f"coco:{root}")
    table = source.listing()
    assert table.keys == [
        *(f"train2017/00000000000{i}.jpg" for i in (7, 8, 9)),
        "val2017/000000000139.jpg",
        "test2017/000000000001.jpg",
    ]
    assert table.splits == ["train"] * 3 + ["val", "test"]
    assert table.classes == ("person", "car", "dog")  # by their ids
    assert [table.class_names(row) for row in range(5)] == [(), ("car",), ("person", "dog"), ("dog",), None]
    assert table.sizes.tolist() == [len(source.read(key)) for key in table.keys]
    assert table.targets == {
        "mask": [None, None, None, "stuffthingmaps/val2017/000000000139.png", None],
        **{kind: [*(f"{kind}/{key}" for key in table.keys[:4]), None] for kind in ("instances", "boxes")},
    }
    assert table.source == f"coco:{root}#2017"
    assert capsys.readouterr().err == ""


def test_two_years(root):
    coco(root, "2014")
    with pytest.raises(UsageError) as caught:
        open_source(f"coco:{root}")
    assert caught.value.what == "this folder holds the years 2014 and 2017"
    assert caught.value.remedy == f"write coco:{root}#2017"
    assert open_source(f"coco:{root}#2014").listing().keys[0] == "train2014/000000000007.jpg"
    with pytest.raises(UsageError, match=r"unknown year of COCO '2015'\n.*\n  remedy: did you mean 2017 or 2014\?"):
        open_source(f"coco:{root}#2015")


def test_val_alone(root, capsys):
    (root / "annotations" / "instances_train2017.json").unlink()
    assert open_source(f"coco:{root}").listing().split_sizes() == {"val": 1, "test": 1}
    assert capsys.readouterr().err == f"coco:{root}#2017: no instances_train2017.json, so no split train\n"


def test_no_annotations(tmp_path):
    with pytest.raises(UsageError, match=r"no annotations of COCO in this folder\n.*\n  remedy: it needs annotations/"):
        open_source(f"coco:{tmp_path}")


def test_images_and_annotations_that_cannot_be_used(tmp_path, root):
    put(tmp_path / "secret.jpg", b"s")
    (root / "train2017" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ["../secret.jpg", "/etc/passwd", "a\nb.jpg", "none.jpg", "link.jpg"]
    train(root, list(enumerate(names)), [])
    assert problems(root) == (
        "5 problems in the image set: "
        "instances_train2017.json: 'train2017/../secret.jpg': the path holds '..'; "
        "instances_train2017.json: 'train2017//etc/passwd': there is no such file; "
        "instances_train2017.json: 'train2017/a\\nb.jpg': the path holds a control character or is not UTF-8; "
        "instances_train2017.json: 'train2017/link.jpg': it leaves the image set's folder; "
        "instances_train2017.json: 'train2017/none.jpg': there is no such file"
    )
    good = [(7, "000000000007.jpg")]
    train(root, good, [(99, 1), (7, 2)], categories=[(1, "person"), (18, "wolf")])
    assert problems(root) == (
        "3 problems in the image set: "
        "instances_train2017.json: an annotation names image 99, which is not listed; "
        "instances_train2017.json: an annotation names category 2, which is not listed; "
        "instances_val2017.json: category 18 is 'dog', but 'wolf' in train"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "JSONDecodeError: Expecting value"),
        ("{", "JSONDecodeError: Expecting property name"),
        ("[" * 100_000, "ValueError: the JSON is nested more than 32 deep"),
        ("[]", "TypeError: list indices"),
        ("{}", "KeyError: 'images'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "KeyError: 'file_name'"),
        ('{"images": 3, "annotations": [], "categories": []}', "TypeError: 'int' object is not iterable"),
        ('{"images": [{"id": [], "file_name": "a"}], "annotations": [], "categories": []}', "TypeError: "),
        ('{"images": [], "annotations": [{}], "categories": []}', "ValueError: an annotation without image_id"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": 2}]}',
            "ValueError: an id that is no numb",
        ),
        (json.dumps(coco_annotations([(1, "a"), (1, "b")], [])), "ValueError: two entries of one id among those with"),
        (json.dumps(coco_annotations([(1, "a"), (2, "a")], [])), "ValueError: two entries of one file_name"),
    ],
)
def test_broken_annotations(root, text, reason):
    put(root / "annotations" / "instances_train2017.json", text)
    expected = f"1 problem in the image set: instances_train2017.json is no file of COCO instances ({reason}"
    assert problems(root).startswith(expected)


def test_no_images(root):
    train(root, [], [])
    put(root / "annotations" / "instances_val2017.json", json.dumps(coco_annotations([], [])))
    (root / "test2017" / "000000000001.jpg").unlink()
    assert problems(root) == "the annotations name no images"


def test_what_is_parsed_against_plain_json():
    content = coco_annotations([(3, "c.jpg"), (1, "a.jpg")], [(3, 1), (1, 18), (3, 1)])
    names, categories, pairs = parse_instances(json.dumps(content).encode())
    assert names == {row["id"]: row["file_name"] for row in content["images"]}
    assert categories == {row["id"]: row["name"] for row in content["categories"]}
    assert pairs == [(row["image_id"], row["category_id"]) for row in content["annotations"]]
