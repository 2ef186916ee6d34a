"""Dense targets as a user meets them: extract, info, plan, verify and drop, on scenes."""

import json

import pytest

from loffta.store.cache import Cache
from tests.cli.small import VIT, assert_error

pytestmark = pytest.mark.usefixtures("quiet_process")
SOURCE = "demo:scenes#px=32,n=10"
OPTIONS = [*VIT, "--kinds", "mean", "--unit-images", "4", "--device", "cpu"]


def test_targets_from_extract_to_drop(command, tmp_path):
    root = tmp_path / "cache"
    words = ["extract", SOURCE, "--cache", root, *OPTIONS]
    assert command(*words)[0] == 0
    code, out, _ = command("plan", *words[1:], "--targets", "mask,boxes", "--sample", "0")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("targets")] == [
        "thumb",
        "mask-squash",
        "native/mask",
        "native/boxes",
        "boxes-squash",
    ]
    code, out, _ = command(*words, "--targets", "mask, boxes", "--target-px", "16")
    assert code == 0
    n_boxes = Cache.open(root).native("boxes").n_objects.sum()
    assert "\ntargets 'mask': 10, 0 missing, 0 bad, 11 classes, squares of 16 px\n" in f"\n{out}"
    assert f"targets 'boxes': 10, 0 missing, 0 bad, 10 classes, {n_boxes} objects\n" in out
    assert "3 units of targets in " in out
    assert "nothing to do" in command(*words, "--targets", "mask,boxes")[1]
    code, out, _ = command("info", root)
    assert code == 0
    assert "targets 'mask': 10, 0 missing, 0 bad, 11 classes, squares of 16 px, " in out
    assert "mask-squash" in out
    code, out, _ = command("info", root, "--json")
    (mask, boxes) = json.loads(out.splitlines()[-1])["targets"]
    assert (mask["kind"], mask["class_names"][:2], boxes["px"]) == ("mask", ["background", "0"], None)
    assert command("verify", root, "--deep", "--images")[0] == 0
    code, out, _ = command("drop", root, "targets:mask", "--yes", "--json")
    assert (code, json.loads(out.splitlines()[-1])["dropped"]) == (0, "targets:mask")
    assert Cache.open(root).target_kinds() == ["boxes"]


def test_words_that_are_no_targets(command, tmp_path):
    words = ["extract", SOURCE, "--cache", tmp_path / "cache", *OPTIONS]
    assert_error(command(*words, "--targets", "maks"), 2, "targets.0: input should be 'mask'", "(got 'maks')")
    found = command("extract", "demo:digits", *words[2:], "--targets", "mask")
    assert_error(found, 2, "has no target 'mask'; it has none", "--targets, SOURCE demo:digits")
    assert_error(command(*words, "--targets", "mask", "--target-px", "0"), 2, "target_px")
    assert not (tmp_path / "cache").exists()


def test_another_target_at_the_source_ends_verify_with_4(command, tmp_path):
    for name, level in (("a", 10), ("b", 200)):
        _paint(tmp_path / f"{name}.png", level)
        _paint(tmp_path / f"{name}-mask.png", level % 2)
    (tmp_path / "t.csv").write_text("image,label,mask\na.png,x,a-mask.png\nb.png,y,b-mask.png\n")
    root = tmp_path / "cache"
    assert command("extract", tmp_path / "t.csv", "--cache", root, *OPTIONS, "--targets", "mask")[0] == 0
    _paint(tmp_path / "b-mask.png", 1)
    code, _, err = command("verify", root, "--images")
    assert code == 4
    assert "1 dense target is not what is cached, the first of b.png: another mask than the one that is cached" in err
    assert f"loffta drop {root} targets:mask" in err


def _paint(path, level):
    from PIL import Image

    Image.new("L", (9, 7), level).save(path)
