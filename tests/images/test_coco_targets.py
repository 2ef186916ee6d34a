"""COCO's instances, boxes and masks against pycocotools and a painter's loop; what is broken in its annotations."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as theirs

from loffta.errors import UsageError
from loffta.images.sources import open_source
from loffta.images.targets import decode_target
from loffta.targets import IGNORE, IGNORE_16
from tests.imagesets import encoded, put

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools 2.0.11 with numpy 2.4
H, W = 8, 6  # of every picture
BIG = [[0.0, 0.0, 6.0, 0.0, 6.0, 6.0, 0.0, 6.0]]
SMALL = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]]
TWO_PARTS = [[4.0, 4.0, 6.0, 4.0, 6.0, 8.0, 4.0, 8.0], [0.0, 6.5, 2.0, 6.5, 2.0, 8.0, 0.0, 8.0]]
LINE = np.ones((H, W), np.uint8) * (np.arange(H)[:, None] == 7)


def runs(mask, *, packed=False):
    found = theirs.encode(np.asfortranarray(mask))
    if packed:
        return {"size": [H, W], "counts": found["counts"].decode()}
    flat = mask.T.reshape(-1)
    counts, value = [], 0
    while len(flat):
        n = next((i for i, v in enumerate(flat) if v != value), len(flat))
        counts, flat, value = [*counts, n], flat[n:], 1 - value
    return {"size": [H, W], "counts": counts}


OBJECTS = [
    {"category_id": 18, "bbox": [1, 1, 2, 2], "iscrowd": 0, "segmentation": SMALL},
    {"category_id": 3, "bbox": [0, 0, 6, 6], "iscrowd": 0, "segmentation": BIG},
    {"category_id": 1, "bbox": [0, 7, 6, 1], "iscrowd": 1, "segmentation": runs(LINE)},
    {"category_id": 1, "bbox": [0, 4, 6, 4], "iscrowd": 0, "segmentation": TWO_PARTS},
    {"category_id": 1, "bbox": [2.5, 3, 0, 4], "iscrowd": 0, "segmentation": runs(LINE * 0, packed=True)},
]
CATEGORIES = [{"id": i, "name": name} for i, name in ((1, "person"), (18, "dog"), (3, "car"))]


def write(root, objects, **image):
    picture = {"id": 7, "file_name": "a.jpg", "height": H, "width": W} | image
    empty = {"id": 9, "file_name": "b.jpg", "height": H, "width": W}
    rows = [{"id": 50 + i, "image_id": 7} | row for i, row in enumerate(objects)]
    content = {"images": [picture, empty], "annotations": rows, "categories": CATEGORIES}
    put(root / "annotations" / "instances_val2017.json", json.dumps(content))
    for name in ("val2017/a.jpg", "val2017/b.jpg", "test2017/c.jpg"):
        put(root / name, encoded(1, "JPEG"))
    return open_source(f"coco:{root}")


def by_painting(objects):
    """Crowds first, then the objects from the largest to the smallest."""
    masks = []
    for row in objects:
        outline = row["segmentation"]
        if isinstance(outline, dict) and isinstance(outline["counts"], list):
            outline = theirs.frPyObjects(outline, H, W)
        elif isinstance(outline, list):
            outline = theirs.merge(theirs.frPyObjects(outline, H, W))
        masks.append(theirs.decode(outline).astype(bool))
    found = np.zeros((H, W), int)
    for row, mask in zip(objects, masks, strict=True):
        if row["iscrowd"]:
            found[mask] = IGNORE_16
    countable = [mask for row, mask in zip(objects, masks, strict=True) if not row["iscrowd"]]
    for i in sorted(range(len(countable)), key=lambda i: -countable[i].sum()):
        found[countable[i]] = i + 1
    return found


def target(source, kind, row=0):
    table = source.listing()
    data = source.read(table.target(kind, row))
    return decode_target(kind, data, classes=table.target_classes.get(kind, ()), size=(H, W))


def test_instances_and_boxes(tmp_path):
    source = write(tmp_path, OBJECTS)
    table = source.listing()
    assert table.targets == {
        kind: [f"{kind}/val2017/a.jpg", f"{kind}/val2017/b.jpg", None] for kind in ("instances", "boxes")
    }
    assert table.target_classes == {"boxes": ("person", "car", "dog")}
    found = target(source, "instances").map
    assert found.tolist() == by_painting(OBJECTS).tolist()
    assert set(np.unique(found).tolist()) == {0, 1, 2, 3, IGNORE_16}  # the empty one is seen nowhere
    assert (found[1:3, 1:3] == 1).all()  # the smaller, though it comes first
    assert found[7, 2] == IGNORE_16
    assert found[7, 5] == 3  # an object over a crowd
    boxes = target(source, "boxes").boxes
    assert boxes.corners.tolist() == [[1, 1, 3, 3], [0, 0, 6, 6], [0, 7, 6, 8], [0, 4, 6, 8]]
    assert boxes.classes.tolist() == [2, 1, 0, 0]
    assert boxes.crowd.tolist() == [False, False, True, False]


def test_an_image_without_objects_has_empty_targets(tmp_path):
    source = write(tmp_path, OBJECTS)
    assert not target(source, "instances", 1).map.any()
    assert target(source, "boxes", 1).boxes.corners.shape == (0, 4)


@pytest.mark.parametrize("key", ["instances/val2017/z.jpg", "boxes/train2017/a.jpg", "boxes/val2014/a.jpg", "boxes/x"])
def test_targets_that_are_not_there(tmp_path, key):
    source = write(tmp_path, OBJECTS)
    with pytest.raises(FileNotFoundError):
        source.read(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmentation": [[1, 2, 3]]}, "annotation 50: a polygon of 3 numbers"),
        ({"segmentation": [["a", 2]]}, "could not convert string to float"),
        ({"segmentation": [[1, 2, 900, 4, 5, 6]]}, "annotation 50: a polygon far outside of the image"),
        ({"segmentation": {"size": [W, H], "counts": [48]}}, "annotation 50: runs of another image"),
        ({"segmentation": {"size": [H, W], "counts": [47]}}, "annotation 50: runs that are not those of 6 x 8 pixels"),
        ({"segmentation": {"size": [H, W], "counts": "\x1b"}}, "annotation 50: runs in no known form"),
        ({"segmentation": 3}, "is not iterable"),
    ],
)
def test_outlines_that_cannot_be_painted(tmp_path, change, words):
    source = write(tmp_path, [OBJECTS[0] | change])
    with pytest.raises(OSError, match=f"its annotations cannot be used: .*{words}"):
        target(source, "instances")


def test_boxes_and_sizes_that_are_none(tmp_path):
    source = write(tmp_path, [OBJECTS[0] | {"bbox": [1, 2, "x", 4]}])
    with pytest.raises(OSError, match=r"annotation 50: the box \[1, 2, 'x', 4\]"):
        target(source, "boxes")
    source = write(tmp_path, OBJECTS, height=10**9)
    with pytest.raises(OSError, match="an image of 6 x 1000000000 pixels"):
        target(source, "instances")


def panoptic(root, ids, segments, folder="panoptic_val2017"):
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    put(root / folder / "a.png", buffer.getvalue())
    rows = [{"id": i, "category_id": c, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1} for i, c in segments]
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": rows}],
        "categories": [*CATEGORIES, {"id": 92, "name": "banner"}],
    }
    put(root / "annotations" / "panoptic_val2017.json", json.dumps(content))


@pytest.mark.parametrize("folder", ["panoptic_val2017", "annotations/panoptic_val2017"])
def test_panoptic_masks(tmp_path, folder):
    ids = np.zeros((H, W), int)
    ids[2:4], ids[5], ids[6] = 70_000, 300, 5
    panoptic(tmp_path, ids, [(70_000, 92), (300, 18), (5, 1)], folder)
    source = write(tmp_path, OBJECTS)
    table = source.listing()
    assert table.targets["mask"] == ["panoptic/val2017/a.png", None, None]
    assert table.target_classes["mask"] == ("person", "car", "dog", "banner")  # by their ids
    expected = np.full((H, W), IGNORE)
    expected[2:4], expected[5], expected[6] = 3, 2, 0
    assert target(source, "mask").map.tolist() == expected.tolist()
    panoptic(tmp_path, ids, [(70_000, 92)], folder)
    with pytest.raises(OSError, match="segment 5 is not among its annotations"):
        target(write(tmp_path, OBJECTS), "mask")
    put(tmp_path / "annotations" / "panoptic_val2017.json", "{}")
    with pytest.raises(UsageError, match=r"annotations/panoptic_val2017.json is no file of panoptic COCO \('categ"):
        write(tmp_path, OBJECTS).listing()


def test_masks_of_coco_stuff_come_first(tmp_path):
    panoptic(tmp_path, np.zeros((H, W), int), [])
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 90], [181, 255]], np.uint8)).save(buffer, "PNG")
    put(tmp_path / "stuffthingmaps" / "val2017" / "a.png", buffer.getvalue())
    source = write(tmp_path, OBJECTS)
    table = source.listing()
    assert table.targets["mask"] == ["stuffthingmaps/val2017/a.png", None, None]
    names = table.target_classes["mask"]
    assert len(set(names)) == 182
    assert [names[i] for i in (0, 11, 90, 91, 181)] == ["person", "street sign", "hair brush", "banner", "wood"]
    found = decode_target("mask", source.read(table.target("mask", 0)), classes=names)
    assert found.map.tolist() == [[0, 90], [181, IGNORE]]
