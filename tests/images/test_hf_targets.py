"""Dense targets of Hugging Face sets: maps by the names of their columns, objects in both layouts, and broken ones."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from loffta.errors import UsageError
from loffta.images.sources import open_source
from loffta.images.targets import decode_target
from tests.imagesets import class_map, encoded

BOX = datasets.List(datasets.Value("float32"), length=4)
LABEL = datasets.ClassLabel(names=["dog", "cat"])


def cell(data):
    return {"bytes": data, "path": None}


def save(root, rows, **features):
    found = datasets.Features({"image": datasets.Image(), **features})
    rows = [{"image": cell(encoded(i)), **row} for i, row in enumerate(rows)]
    datasets.Dataset.from_list(rows, features=found).save_to_disk(root / "set")
    return open_source(f"hf:{root}/set")


def tiff(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


def test_maps(tmp_path, capsys):
    depth = np.array([[1.5, 0, 2]] * 2, np.float32)
    rows = [
        {"annotation": cell(class_map(0)), "depth_map": cell(tiff(depth)), "instance_mask": cell(class_map(1, 9))},
        {"annotation": None, "depth_map": None, "instance_mask": None},
    ]
    columns = dict.fromkeys(rows[0], datasets.Image())
    source = save(tmp_path, rows, **columns)
    table = source.listing()
    assert table.targets == {kind: [f"{kind}/train/00000000", None] for kind in ("mask", "instances", "depth")}
    assert table.target_classes == {}  # no data set says what the numbers of a map mean
    assert source.read("mask/train/00000000") == class_map(0)  # as it was stored
    assert decode_target("depth", source.read("depth/train/00000000")).map.tolist() == depth.tolist()
    assert decode_target("instances", source.read("instances/train/00000000")).map.max() == 65535
    assert source.read(table.keys[0]) == encoded(0)
    assert "the column annotation holds the target mask\n" in capsys.readouterr().err
    for key in ("boxes/train/00000000", "mask/train/00000002", "x/train/00000000", "mask/00000000"):
        with pytest.raises(OSError, match="there is no"):
            source.read(key)
    with pytest.raises(OSError, match="the row has no image"):
        source.read("mask/train/00000001")


DICT = [
    {"bbox": [[1, 2, 3, 2], [0, 0, 6, 8]], "category": [1, 0], "iscrowd": [0, 1]},
    {"bbox": [], "category": [], "iscrowd": []},
    None,
]


def boxes_of(source):
    table = source.listing()
    return [
        decode_target("boxes", source.read(key), classes=table.target_classes["boxes"], size=(8, 6)).boxes
        for key in table.targets["boxes"]
        if key
    ]


def test_objects_as_a_dict_of_lists(tmp_path):
    fields = {
        "bbox": datasets.List(BOX),
        "category": datasets.List(LABEL),
        "iscrowd": datasets.List(datasets.Value("int8")),
    }
    source = save(tmp_path, [{"objects": objects} for objects in DICT[:2]], objects=fields)
    table = source.listing()
    assert table.targets == {"boxes": [f"boxes/train/0000000{i}" for i in range(2)]}
    assert table.target_classes == {"boxes": ("dog", "cat")}
    first, second = boxes_of(source)
    assert first.corners.tolist() == [[1, 2, 4, 4], [0, 0, 6, 8]]
    assert (first.classes.tolist(), first.crowd.tolist()) == ([1, 0], [False, True])
    assert len(second.corners) == 0


@pytest.mark.parametrize(
    ("kind", "given", "classes"),
    [
        (LABEL, [1, 0], ("dog", "cat")),
        (datasets.Value("string"), ["zebra", "ant"], ("ant", "zebra")),
        (datasets.Value("int64"), [2, 0], ("0", "1", "2")),
    ],
)
def test_objects_as_a_list_of_dicts(tmp_path, kind, given, classes):
    fields = datasets.List({"bbox": BOX, "label": kind, "area": datasets.Value("float32")})
    objects = [{"bbox": [1, 2, 3, 2], "label": label, "area": 1.0} for label in given]
    source = save(tmp_path, [{"objects": objects}, {"objects": None}], objects=fields)
    table = source.listing()
    assert table.targets["boxes"] == ["boxes/train/00000000", None]
    assert table.target_classes["boxes"] == classes
    names = dict(enumerate(LABEL.names)) if kind is LABEL else {label: str(label) for label in given}
    assert [classes[i] for i in boxes_of(source)[0].classes] == [names[label] for label in given]
    with pytest.raises(OSError, match="the row has no objects"):
        source.read("boxes/train/00000001")


@pytest.mark.parametrize(
    ("objects", "what"),
    [
        ({"bbox": [[1, 2, 3, 2]], "category": []}, "zip() argument 2 is shorter than argument 1"),
        ({"bbox": [[1, 2, 3]], "category": [0]}, "the box [1.0, 2.0, 3.0] is not left, top, width and height"),
        ({"bbox": [[1, 2, 3, 4]], "category": [-1]}, "the class -1 of 2"),
    ],
)
def test_objects_that_cannot_be_used(tmp_path, objects, what):
    box = datasets.List(datasets.Value("float32"))
    fields = {"bbox": datasets.List(box), "category": datasets.List(LABEL)}
    source = save(tmp_path, [{"objects": objects}], objects=fields)
    with pytest.raises(UsageError) as caught:
        source.listing()
    assert caught.value.what == f"1 problem in the image set: train/00000000: its objects cannot be used: {what}"
    with pytest.raises(OSError, match="its objects cannot be used: "):
        source.read("boxes/train/00000000")


def test_objects_of_another_kind_are_no_boxes(tmp_path):
    source = save(tmp_path, [{"objects": ["a"]}], objects=datasets.List(datasets.Value("string")))
    assert source.listing().targets == {}
