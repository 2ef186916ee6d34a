"""Dense targets that are missing or bad, lost or damaged: counted, named, written anew, or dropped."""

import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from loffta.errors import LofftaError, TooManyBadImages, UsageError
from loffta.extraction import target_repair
from loffta.extraction.plan import make_plan
from loffta.extraction.recheck import verify_images
from loffta.extraction.repair import repair
from loffta.machine.process import StopFlag
from loffta.machine.quota import Room
from loffta.store.cache import Cache
from loffta.store.drop import drop, find_target
from loffta.store.inventory import take_inventory
from loffta.store.purge import missing_natives
from loffta.store.target_codec import encode_target
from loffta.store.verify import verify
from loffta.targets import TARGET_KINDS, NativeTarget
from tests.extraction.filled import N, fill, refuse_to_load
from tests.extraction.test_targets import ALL, PX, alone, stat_files
from tests.fakes import DenseSource, cache_files, fake_config, picture, png

HEIGHT, WIDTH = picture(4).shape[:2]
BROKEN = {
    9: b"no image",
    "mask/0002.png": None,
    "mask/0003.png": b"no mask",
    "mask/0004.png": encode_target(NativeTarget("mask", WIDTH, HEIGHT, map=np.zeros((WIDTH, HEIGHT), np.uint8))),
    "mask/0005.png": encode_target(
        NativeTarget("mask", *picture(5).shape[:2], map=np.full(picture(5).shape[:2], 7, np.uint8))
    ),
    "mask/0006.png": FileNotFoundError("no such file"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound") / "cache"
    fill(root, DenseSource(N), **ALL)
    return root


@pytest.fixture
def root(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "cache")


def test_what_is_missing_or_bad_is_counted_and_named(tmp_path):
    config = {"targets": ("mask",), "target_px": PX, "max_bad_frac": 0.25}
    report = fill(tmp_path, DenseSource(N, BROKEN), **config)
    (masks,) = report.targets
    assert (masks.ok, masks.missing, masks.objects, report.bad) == (N - 6, 2, 0, 1)
    words = {
        "0003.png": "not a PNG",
        "0004.png": f"it has {HEIGHT} x {WIDTH} pixels, the image {WIDTH} x {HEIGHT}: was it made before EXIF",
        "0005.png": "pixels of class 7, but there are 3 classes",
        "0006.png": "cannot be read: ",
    }
    assert masks.bad.keys() == words.keys()
    for key, reason in words.items():
        assert reason in masks.bad[key]
    cache = Cache.open(tmp_path)
    native = cache.native("mask")
    assert native.reasons[2] == "the image set has none"
    assert native.reasons[9] == "its image cannot be used"
    squares = cache.training_target("mask", cache.stores()[0])
    assert np.flatnonzero(~squares.ledger.ready).tolist() == [2, 3, 4, 5, 6, 9]
    theirs = zarr.open_array(store=squares.paths.folder, mode="r")[:]
    assert (theirs[[2, 3, 4, 5, 6, 9]] == 255).all()
    assert [*verify(cache, deep=True)] == []
    with pytest.raises(
        TooManyBadImages, match=r"4 of 18 targets 'mask' cannot be used; the first: 0003.png: not a PNG"
    ):
        fill(tmp_path, DenseSource(N, BROKEN), **(config | {"max_bad_frac": 0.2}))


def test_masks_of_colours_need_a_palette_that_is_remembered(tmp_path, monkeypatch):
    """Asked for once; more images and a repair go by what the cache says."""
    colours = np.array([[0, 0, 0], [200, 10, 10], [0, 0, 250], [255, 255, 255]], np.uint8)

    def painted(n):
        numbers = {i: np.random.default_rng(i).integers(0, 4, picture(i).shape[:2]) for i in range(n)}
        return numbers, DenseSource(n, {f"mask/{i:04d}.png": png(colours[found]) for i, found in numbers.items()})

    _, source = painted(N)
    with pytest.raises(TooManyBadImages, match="--palette FILE says which colour is which"):
        fill(tmp_path / "none", source, targets=("mask",))
    palette = tmp_path / "palette.csv"
    palette.write_text("0,0,0,road\n200,10,10,car\n0,0,250,sky\n255,255,255,ignore\n")
    root = tmp_path / "cache"
    fill(root, source, targets=("mask",), target_px=PX, palette=palette)
    fill(root, painted(N + 7)[1], targets=("mask",))
    native = Cache.open(root).native("mask")
    assert native.classes == ("road", "car", "sky")
    for i, found in enumerate(native.read(range(N + 7))):
        assert np.array_equal(found.map, np.array([0, 1, 2, 255])[painted(i + 1)[0][i]])
    before = native.paths.done(1).read_bytes()
    native.paths.done(1).write_bytes(before[:-5])
    monkeypatch.setattr(target_repair, "open_source", lambda _: painted(N + 7)[1])
    assert repair(Cache.open(root), [*verify(Cache.open(root))], [], StopFlag()) == 1
    assert native.paths.done(1).read_bytes() == before


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "hurt", "deep", "reads"),
    [
        ("native/mask/u000001.parquet", _cut, False, True),
        ("native/depth/u000001.parquet", _flip, True, True),
        ("native/boxes/u000002.parquet", _cut, False, True),
        ("boxes-squash/u000001.parquet", _cut, False, False),
        ("mask-squash/c.1.0.0", _cut, False, False),
        ("depth-squash/c.0.0.0", _flip, True, False),
        ("instances-squash/c.1.0.0", lambda path: path.unlink(), False, False),
    ],
)
def test_damage_is_found_and_mended(sound, root, monkeypatch, name, hurt, deep, reads):
    """Squares are made anew from what is cached: the image set is not opened for them."""
    features = stat_files(root, "stores", "targets/thumb")
    hurt(root / "targets" / name)
    (damage,) = verify(Cache.open(root), deep=deep)
    assert damage.array == f"targets/{name.rpartition('/')[0]}"
    source, opened = DenseSource(N), []
    monkeypatch.setattr(target_repair, "open_source", lambda spec: opened.append(spec) or source)
    assert repair(Cache.open(root), [damage], [], StopFlag()) == 1
    assert opened == (["fake:png"] if reads else [])
    assert set(source.reads) == ({f"{name.split('/')[1]}/{i:04d}.png" for i in _rows(name)} if reads else set())
    assert cache_files(root, "**/*") == cache_files(sound, "**/*")
    assert stat_files(root, "stores", "targets/thumb") == features
    assert [*verify(Cache.open(root), deep=True)] == []


def _rows(name):
    unit = int(name.rpartition("/u")[2].removesuffix(".parquet"))
    return range(8 * unit, min(8 * unit + 8, N))


def test_a_repair_that_is_cut_off_is_remembered(root, monkeypatch):
    _cut(root / "targets" / "native" / "mask" / "u000001.parquet")

    def fail(_):
        raise UsageError("the disk is elsewhere", where="SOURCE", remedy="mount it")

    monkeypatch.setattr(target_repair, "open_source", fail)
    with pytest.raises(UsageError):
        repair(Cache.open(root), [*verify(Cache.open(root))], [], StopFlag())
    (damage,) = verify(Cache.open(root))
    assert (damage.array, damage.unit) == ("targets/native/mask", 1)
    assert damage.what == "it was damaged, and is not written anew yet"
    assert alone(root).target_units == 1
    assert [*verify(Cache.open(root), deep=True)] == []


def test_an_edited_zarr_json_is_written_anew(sound, root):
    metadata = root / "targets" / "mask-squash" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"sky"', '"sea"'))
    damages = [*verify(Cache.open(root))]
    assert [(one.array, one.unit) for one in damages] == [("targets/mask-squash", None)]
    repair(Cache.open(root), damages, [], StopFlag())
    assert cache_files(root, "**/*") == cache_files(sound, "**/*")


def test_what_a_purge_took_is_said_and_written_anew(sound, root, capsys):
    (root / "targets" / "native" / "mask" / "u000001.parquet").unlink()
    (root / "targets" / "depth-squash" / "c.2.0.0").unlink()
    cache = Cache.open(root)
    assert missing_natives(cache) == {"targets/native/mask": [1]}
    assert take_inventory(cache)["missing_shards"] == {"targets/native/mask": [1], "targets/depth-squash": [2]}
    source = DenseSource(N)
    assert alone(root, source).target_units == 2
    said = capsys.readouterr().err
    assert "targets/native/mask: units 1" in said
    assert "targets/depth-squash: units 2" in said
    assert cache_files(root, "**/*") == cache_files(sound, "**/*")


def test_info_tells_kinds_classes_and_bytes(root):
    held = take_inventory(Cache.open(root))
    found = {target["kind"]: target for target in held["targets"]}
    assert list(found) == list(TARGET_KINDS)
    mask, boxes = found["mask"], found["boxes"]
    assert (mask["ok"], mask["missing"], mask["bad"], mask["class_names"], mask["px"]) == (
        N,
        0,
        {},
        ["sky", "dog", "cat"],
        PX,
    )
    assert (mask["units_done"], mask["units"], boxes["px"]) == (3, 3, None)
    assert boxes["objects"] == sum(len(DenseSource(N).target("boxes", i).boxes.classes) for i in range(N))
    assert mask["bytes"] == sum(p.stat().st_size for p in (root / "targets/native/mask").iterdir())
    (square,) = mask["squares"]
    assert square["bytes"] == sum(p.stat().st_size for p in (root / "targets/mask-squash").glob("c.*"))
    assert (square["units_done"], square["images_done"]) == (3, N)
    assert held["damaged"] == held["orphans"] == []
    _cut(root / "targets/native/depth/u000000.parquet")
    assert [one["array"] for one in take_inventory(Cache.open(root))["damaged"]] == ["targets/native/depth"]


def test_drop_removes_one_kind_or_all_and_nothing_else(sound, root):
    cache = Cache.open(root)
    with pytest.raises(UsageError, match="kind of targets 'maks'"):
        find_target(cache, "targets:maks")
    found = find_target(cache, "targets:mask")
    assert found.count_bytes() == sum(
        p.stat().st_size for p in root.rglob("*") if "mask" in str(p.relative_to(root)) and p.is_file()
    )
    drop(found)
    assert cache.target_kinds() == ["instances", "depth", "boxes"]
    left = cache_files(sound, "**/*")
    assert cache_files(root, "**/*") == {name: data for name, data in left.items() if "mask" not in name}
    drop(find_target(cache, "targets:depth-squash"))
    alone(root)  # squares of depth from what is cached, masks from the source
    assert cache_files(root, "**/*") == left
    drop(find_target(cache, "targets"))
    assert cache.target_kinds() == []
    assert cache_files(root, "**/*") == {
        name: data
        for name, data in left.items()
        if not name.removeprefix("done/").startswith("targets/") or "thumb" in name
    }


def test_plan_counts_targets(root, tmp_path):
    fill(tmp_path / "bare", DenseSource(N))
    config = fake_config(tmp_path / "bare", **ALL)
    planned = make_plan(config, DenseSource(N), refuse_to_load, sample=0)
    assert not (tmp_path / "bare" / "targets" / "native").exists()
    by_name = {array.kind: array for array in planned.arrays if array.store == "targets"}
    for kind in ("mask", "instances", "depth"):
        array = by_name[f"{kind}-squash"]
        assert array.shard_bytes == sum(p.stat().st_size for p in (root / f"targets/{kind}-squash").glob("c.*"))
        assert (array.units_missing, array.files) == (3, 6)
        real = sum(p.stat().st_size for p in (root / "targets/native" / kind).iterdir())
        native = by_name[f"native/{kind}"]
        assert (native.units_missing, native.files, native.images_missing) == (3, 3, N)
        assert (
            real / 3 < native.shard_bytes < real * 2
        )  # a file's own 2 kB weigh here, which they do not in a unit of 256
    assert planned.images_missing == N
    assert make_plan(fake_config(root, **ALL), DenseSource(N), refuse_to_load, sample=0).images_missing == 0


def test_a_cache_that_has_no_room_for_native_targets_is_not_begun(root, tmp_path, monkeypatch):
    """Room for all squares and features, by what they took, and for half of the targets at their own sizes."""
    new = tmp_path / "new"
    native = sum(path.stat().st_size for path in root.glob("targets/native/*/*"))
    rest = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) - native
    room = rest + native // 2
    monkeypatch.setattr("loffta.store.space.user_quota", lambda path: None)
    monkeypatch.setattr("loffta.store.space.free_room", lambda path: Room(room, None))
    with pytest.raises(LofftaError, match="are free on this file system"):
        fill(new, DenseSource(N), **ALL)
    assert not [*new.glob("targets/native/*/*")]
    assert not [*new.rglob("c.*")]
    room = rest + 2 * native
    fill(new, DenseSource(N), **ALL)
    room = 0
    assert fill(new, DenseSource(N), **ALL).units == 0  # nothing is missing


@pytest.mark.parametrize(
    ("call", "number", "said"),
    [
        ("open", errno.EROFS, "nothing can be written here"),
        ("write", errno.ENOSPC, "no space left to write a file"),
        ("close", errno.EDQUOT, "no space left to write a file"),
    ],
)
def test_a_disk_that_is_full_or_read_only_leaves_no_half_unit(sound, tmp_path, monkeypatch, call, number, said):
    """Of the second unit of a kind: what was finished stays, and the same command goes on."""
    root, source = tmp_path / "cache", DenseSource(N)
    native = Cache.open(sound).paths.native("depth").done(1).relative_to(sound)
    fault, opened = OSError(number, os.strerror(number)), Path.open

    class Faulty(io.FileIO):
        def write(self, data):
            if call == "write" or (call == "close" and bytes(data[-4:]) == b"PAR1" and self.tell()):
                raise fault
            return super().write(data)

    def open_or_fail(path, mode="r", *args, **more):
        if path.parent != (root / native).parent or native.name not in path.name or "x" not in mode:
            return opened(path, mode, *args, **more)
        if call == "open":
            raise fault
        return Faulty(path, "x+")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_or_fail)
        with pytest.raises(LofftaError, match=said) as caught:
            fill(root, source, **ALL)
    assert caught.value.where == str(root / native)
    assert [*root.rglob("*.part")] == []
    assert not (root / native).exists()
    assert (root / native).with_name("u000000.parquet").exists()
    fill(root, source, **ALL)
    assert cache_files(root, "**/*") == cache_files(sound, "**/*")


def test_images_and_targets_are_compared_with_their_source(root):
    assert [*verify_images(Cache.open(root), DenseSource(N))] == []
    changed = {"mask/0003.png": b"other", "depth/0004.png": FileNotFoundError("gone")}
    found = [*verify_images(Cache.open(root), DenseSource(N, changed))]
    assert [(one.row, one.target) for one in found] == [(3, "mask"), (4, "depth")]
