"""demo:scenes against a composition pixel by pixel; what is hard in it, and what splits share."""

import io
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from loffta.errors import LofftaError, UsageError
from loffta.images import scenes
from loffta.images.demo import open_demo
from loffta.images.files import key_fault
from loffta.images.scene_plan import DIGITS, PHOTO_PART, SIZES, draw_scene, kind_of, size_group, split_of
from loffta.images.sources import ImageSource, open_source
from loffta.images.targets import decode_target
from tests.imagesets import decode

PX = 40
KINDS = ("mask", "instances", "depth", "boxes")


@pytest.fixture(scope="module")
def source():
    return open_source(f"demo:scenes#px={PX},n=240")


@pytest.fixture(scope="module")
def table(source):
    return source.listing()


def targets_of(source, table, row):
    """The four targets of one scene, decoded as those of any other source."""
    found = {}
    for kind in KINDS:
        data, classes = source.read(table.target(kind, row)), table.target_classes.get(kind, ())
        found[kind] = decode_target(kind, data, classes=classes, size=(PX, PX))
    return found


def pixels_of(data):
    return np.asarray(decode(data).image)


def ink_at(digit, x, y):
    """Of one place: the four cells around it, each as far as it is near."""
    dx, dy = (x - digit.x) / digit.side * 8, (y - digit.y) / digit.side * 8
    u = dx * math.cos(digit.turn) + dy * math.sin(digit.turn) + 3.5  # in cells, from the centre of the first
    v = dy * math.cos(digit.turn) - dx * math.sin(digit.turn) + 3.5
    cells = load_digits().images[digit.number] / 16
    total = 0.0
    for row in range(8):
        for column in range(8):
            total += cells[row, column] * max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
    return total


def places(px):
    return [(i, j, (j + 0.5) / px, (i + 0.5) / px) for i in range(px) for j in range(px)]


def near(digit, x, y):
    return max(abs(x - digit.x), abs(y - digit.y)) < 0.8 * digit.side


def compose(scene, px):
    """(ink of every digit, classes, instances, depth) by loops; the nearest digit decides first who is seen."""
    inks = []
    for digit in scene.digits:
        ink = np.zeros((px, px))
        for i, j, x, y in places(px):
            ink[i, j] = ink_at(digit, x, y) if near(digit, x, y) else 0
        inks.append(ink)
    there = []
    for n in sorted(range(len(inks)), key=lambda n: scene.digits[n].distance):
        inside = inks[n] >= 0.4
        hidden = np.any([inks[m] >= 0.4 for m in there], axis=0) if there else np.zeros((px, px), bool)
        if (inside & ~hidden).sum() >= max(4, 0.25 * inside.sum()):
            there.append(n)
    numbers = {n: i + 1 for i, n in enumerate(sorted(there))}
    classes, instances, depth = np.zeros((3, px, px))
    ground = scene.ground
    for i, j, x, y in places(px):
        depth[i, j] = 1 / (ground.far + ground.rise * y + ground.roll * (x - 0.5))
        for n in there:  # from the nearest on
            if inks[n][i, j] >= 0.4:
                classes[i, j] = load_digits().target[scene.digits[n].number] + 1
                instances[i, j], depth[i, j] = numbers[n], scene.digits[n].distance
                break
    return {n: inks[n] for n in numbers}, classes, instances, depth


def photos():
    """In the order in which a scene's number chooses one."""
    import skimage.data

    names = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel")
    found = [*load_sample_images().images, *(getattr(skimage.data, name)() for name in names)]
    return [photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2) for photo in found]


def picture(scene, inks, px):
    """[px, px, 3]: the photo on the ground, and one digit after the other over it, the nearest last."""
    photo = photos()[int(scene.ground.photo * 8)]
    part = photo[:, slice(*(round(share * photo.shape[1]) for share in PHOTO_PART[scene.split]))]
    folded = np.concatenate([part, part[::-1]], axis=0)
    folded = np.concatenate([folded, folded[:, ::-1]], axis=1)
    found = np.zeros((px, px, 3))
    for i, j, x, y in places(px):
        metres = 1 / (scene.ground.far + scene.ground.rise * y + scene.ground.roll * (x - 0.5))
        column = (x - 0.5) * metres * 120 + scene.ground.origin[0] * part.shape[1]
        row = metres * 120 + scene.ground.origin[1] * part.shape[0]
        found[i, j] = folded[math.floor(row) % len(folded), math.floor(column) % folded.shape[1]]
    for n in sorted(inks):
        digit, behind = scene.digits[n], found[inks[n] >= 0.4].mean(axis=0)
        colour = behind + (digit.contrast if behind.mean() < 128 else -digit.contrast) + np.array(digit.tint)
        share = np.clip((inks[n] - 0.4) / 0.2 + 0.5, 0, 1)[..., None]
        found = found * (1 - share) + colour * share
    return found.clip(0, 255)


@pytest.fixture(scope="module", autouse=True)
def digits_once():
    """scikit-learn reads a file at every call."""
    global load_digits
    found, original = load_digits(), load_digits
    load_digits = lambda: found  # noqa: E731
    yield
    load_digits = original


@pytest.mark.parametrize("index", [0, 3, 83, 10, 17])
def test_every_target_against_loops(source, table, index):
    """Two plain scenes, and one of every kind that is hard; two digits of the crowd are hidden, so not there."""
    scene = draw_scene(0, index)
    inks, classes, instances, depth = compose(scene, PX)
    found = targets_of(source, table, index)
    assert np.array_equal(found["mask"].map, classes)
    assert np.array_equal(found["instances"].map, instances)
    assert np.allclose(found["depth"].map, depth, rtol=1e-6)
    boxes = found["boxes"].boxes
    assert len(boxes.corners) == len(inks) == instances.max() > 0
    for number, corners, name in zip(range(1, 99), boxes.corners.tolist(), boxes.classes.tolist(), strict=False):
        rows, columns = np.nonzero(instances == number)
        assert corners == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert set(classes[instances == number]) == {name + 1}
    shown = pixels_of(source.read(table.keys[index])).astype(int)
    assert np.abs(shown - picture(scene, inks, PX)).max() <= 0.51


def test_the_scenes_that_loops_composed_are_of_every_kind():
    assert {kind_of(index) for index in (0, 3, 83, 10, 17)} == {"plain", "small", "crowded", "faint"}


def test_the_table(source, table):
    assert isinstance(source, ImageSource)
    assert table.source == f"demo:scenes#px={PX},n=240,seed=0"
    assert table.split_sizes() == {"train": 168, "val": 24, "test": 48}
    assert table.keys[:4] == ["plain/000000.png", "plain/000001.png", "plain/000002.png", "small/000003.png"]
    assert [key_fault(key) for key in table.keys] == [None] * 240
    assert (table.label_kind, set(table.labels.tolist())) == ("single-label", {-1})
    assert tuple(table.targets) == KINDS
    assert table.target_classes == {"mask": ("background", *"0123456789"), "boxes": tuple("0123456789")}
    assert open_source("demo:scenes").listing().source == "demo:scenes#px=128,n=2000,seed=0"


def test_a_quarter_is_hard_in_every_split(table):
    kinds = Counter((table.splits[row], key.partition("/")[0]) for row, key in enumerate(table.keys))
    assert kinds == {
        (split, kind): n * (9 if kind == "plain" else 1)
        for split, n in (("train", 14), ("val", 2), ("test", 4))
        for kind in ("plain", "small", "crowded", "faint")
    }


def test_scenes_are_the_same_for_ever_however_many_there_are(source, table):
    again = open_source(f"demo:scenes#n=300,seed=0,px={PX}")
    assert again.listing().keys[:240] == table.keys
    for row in (0, 3, 239):
        for key in (table.keys[row], *(table.target(kind, row) for kind in KINDS)):
            assert again.read(key) == source.read(key)
    other = open_source(f"demo:scenes#px={PX},n=240,seed=1")
    assert other.read("plain/000000.png") != source.read("plain/000000.png")
    # numpy's and hashlib's streams: another draw would be another set under the same name
    drawn = [(digit.number, round(digit.x, 6)) for digit in draw_scene(0, 0).digits]
    assert drawn == [(765, 0.768128), (854, 0.384903), (64, 0.596578)]


def test_a_scene_is_the_same_at_every_resolution(source, table):
    fine = open_source(f"demo:scenes#px={3 * PX},n=240")
    for row in (0, 7):
        coarse = targets_of(source, table, row)["mask"].map
        data = fine.read(table.target("mask", row))
        centres = decode_target("mask", data).map[1::3, 1::3]  # the same places
        assert np.array_equal(coarse, centres)


def test_splits_share_neither_a_digit_nor_a_part_of_a_photo():
    drawn = {split: set() for split in DIGITS}
    for index in range(600):
        scene = draw_scene(0, index)
        assert scene.split == split_of(index)
        drawn[scene.split] |= {digit.number for digit in scene.digits}
    for split, (first, stop) in DIGITS.items():
        assert drawn[split] <= set(range(first, stop))
        assert len(drawn[split]) > 100
    ranges = sorted(DIGITS.values())
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges))
    assert PHOTO_PART["train"][1] <= min(PHOTO_PART["val"][0], PHOTO_PART["test"][0])


def test_what_is_hard(source, table):
    """Digits of small scenes are small; crowds hide each other; what is faint differs little from what is around it."""
    sizes = {kind: Counter() for kind in ("plain", "small", "crowded", "faint")}
    hidden = {kind: [] for kind in sizes}
    contrast = {kind: [] for kind in sizes}
    for row in range(120):
        kind = kind_of(row)
        scene, found = draw_scene(0, row), targets_of(source, table, row)
        shown = pixels_of(source.read(table.keys[row])).astype(float).mean(axis=2)
        limits = (14, 26) if kind == "faint" else (70, 120)
        assert all(limits[0] <= digit.contrast <= limits[1] for digit in scene.digits)
        assert kind != "faint" or all(np.abs(digit.tint).max() <= 12 for digit in scene.digits)
        hidden[kind].append(len(scene.digits) - len(found["boxes"].boxes.corners))
        for number, corners in enumerate(found["boxes"].boxes.corners.tolist(), start=1):
            sizes[kind][size_group(*corners, PX)] += 1
            inside = found["instances"].map == number
            left, top, right, bottom = (int(c) for c in corners)
            around = np.zeros((PX, PX), bool)
            around[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = True
            around &= found["mask"].map == 0
            contrast[kind].append(abs(shown[inside].mean() - shown[around].mean()))
    assert set(sizes["small"]) == {"small"}
    assert sizes["plain"]["small"] < sizes["plain"].total() / 2
    assert all(sizes["plain"][name] > 10 for name in SIZES)
    assert np.mean(hidden["crowded"]) > 3 * np.mean(hidden["plain"])
    assert np.median(contrast["faint"]) < 0.5 * np.median(contrast["plain"])


def test_depths_are_those_of_a_room_and_digits_stand_before_the_ground(source, table):
    for row in range(40):
        found = targets_of(source, table, row)
        depth, ground = found["depth"].map, found["mask"].map == 0
        assert 0.3 < depth.min() < depth.max() < 10
        y, x = np.nonzero(ground)
        plane, *_ = np.linalg.lstsq(np.stack([x, y, np.ones(len(x))], axis=1), 1 / depth[ground], rcond=None)
        behind = 1 / (np.mgrid[:PX, :PX][::-1].transpose(1, 2, 0) @ plane[:2] + plane[2])
        assert np.abs(behind - depth)[ground].max() < 1e-3  # one plane: 1 / distance is linear in the picture
        assert (depth[~ground] < behind[~ground]).all()


def test_some_scenes_are_empty():
    empty = [index for index in range(1000) if not draw_scene(0, index).digits]
    assert 5 < len(empty) < 40
    source = open_source(f"demo:scenes#px={PX},n=1000")
    table = source.listing()
    found = targets_of(source, table, empty[0])
    assert not found["mask"].map.any()
    assert len(found["boxes"].boxes.corners) == 0


@pytest.mark.parametrize(
    ("box", "group"),
    [((0, 0, 8, 3), "small"), ((0, 0, 8.5, 3), "medium"), ((1, 1, 2, 17), "medium"), ((0, 0, 3, 64), "large")],
)
def test_groups_of_sizes(box, group):
    assert size_group(*box, 64) == group


@pytest.mark.parametrize(
    "key",
    ["plain/000240.png", "small/000000.png", "plain/0.png", "masks/plain/000000.png", "mask/plain/000000.jpg", "../x"],
)
def test_scenes_that_are_not_there(source, key):
    with pytest.raises(FileNotFoundError, match="there is no '"):
        source.read(key)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("pixels=3", "unknown option of demo:scenes 'pixels'"),
        ("px", "px is a whole number from 32 to 512, once (got 'px')"),
        ("px=31", "px is a whole number from 32 to 512, once (got 'px=31')"),
        ("n=1e3", "n is a whole number from 1 to 1000000, once (got 'n=1e3')"),
        ("n=5,n=6", "n is a whole number from 1 to 1000000, once (got 'n=6')"),
        ("seed=-1", "seed is a whole number from 0 to 2147483647, once (got 'seed=-1')"),
        ("n=9,", "unknown option of demo:scenes ''"),
    ],
)
def test_options_that_cannot_be_used(options, what):
    with pytest.raises(UsageError) as caught:
        open_demo(f"scenes#{options}")
    assert (caught.value.what, caught.value.where) == (what, f"SOURCE demo:scenes#{options}")


def test_names_of_demos():
    with pytest.raises(UsageError, match=r"unknown demo image set 'scene'\n.*\n  remedy: did you mean scenes\?"):
        open_demo("scene")
    with pytest.raises(UsageError, match="unknown demo image set 'digits#n=3'"):
        open_demo("digits#n=3")


def test_without_scikit_image(monkeypatch):
    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LofftaError) as caught:
        open_source("demo:scenes").listing()
    assert caught.value.what.endswith("needs the sample photos of scikit-learn")
    assert caught.value.remedy == "pip install 'loffta[demo]'"


def test_boxes_are_json_and_depth_is_npy(source, table):
    assert all(len(row) == 5 for row in json.loads(source.read(table.target("boxes", 0))))
    assert np.load(io.BytesIO(source.read(table.target("depth", 0)))).dtype == np.float32
    assert Image.open(io.BytesIO(source.read(table.target("mask", 0)))).mode == "L"
