"""Fresh features against stored ones: equal when nothing changed, told apart when anything did."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loffta_cli.main import main
from PIL import Image, ImageOps

from loffta.errors import LofftaError
from loffta.extraction.extract import extract
from loffta.images import batches
from loffta.machine.process import StopFlag
from loffta.online.recompute import TOLERANCE, choose_rows, distance, recompute, tolerance_of
from loffta.store.cache import Cache
from tests.fakes import FakeBackbone, PngSource, fake_config, picture, png

N = 20  # two and a half units of 8


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)


@pytest.fixture
def cache(tmp_path):
    config = fake_config(tmp_path / "cache", max_bad_frac=1.0)
    extract(config, PngSource(N, {3: b""}), lambda _: FakeBackbone(), StopFlag())
    return Cache.open(tmp_path / "cache")


def compare(cache, n_images=5, source=None, backbone=None):
    load = lambda _: backbone or FakeBackbone()  # noqa: E731
    return list(recompute(cache, source or PngSource(N), load, n_images))


def test_unchanged_features_agree_in_every_bit(cache):
    found = compare(cache)
    assert [(c.relative_rms, c.max_abs, c.images, c.agrees) for c in found] == [(0.0, 0.0, 5, True)] * len(found)
    taps = {(c.array.partition("/")[2], c.tap) for c in found}
    assert taps == {
        (f"{kind}-{k}", tap)
        for kind, k, tap in [
            ("grid", 0, "blocks.0"), ("grid", 0, "blocks.1"), ("grid", 1, "stages.2"),
            ("prefix", 0, "blocks.0"), ("prefix", 0, "blocks.1"),
            ("mean", 0, "blocks.0"), ("mean", 0, "blocks.1"), ("mean", 1, "stages.2"),
        ]
    }  # fmt: skip


def test_it_writes_nothing(cache):
    root = cache.paths.root
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    compare(cache)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_images_are_random_finished_and_seeded(cache):
    (store,) = cache.stores()
    assert choose_rows(store, 5, 0).tolist() == choose_rows(store, 5, 0).tolist()
    assert choose_rows(store, 5, 0).tolist() != choose_rows(store, 5, 1).tolist()
    assert choose_rows(store, 1000, 0).tolist() == [row for row in range(N) if row != 3]
    (lost,) = cache.paths.root.glob("done/fake-*/mean-0/u000001.parquet")
    lost.unlink()
    (store,) = Cache.open(cache.paths.root).stores()
    assert choose_rows(store, 1000, 0).tolist() == [0, 1, 2, 4, 5, 6, 7, 16, 17, 18, 19]


def test_an_unfinished_store_has_nothing_to_compare(cache):
    for path in cache.paths.root.glob("done/fake-*/*/*"):
        path.unlink()
    assert compare(Cache.open(cache.paths.root)) == []


def test_one_altered_image_is_named(cache):
    found = compare(cache, N, PngSource(N, {7: png(picture(99))}))
    assert {(c.agrees, c.worst, c.images) for c in found} == {(False, "0007.png", 19)}


def test_swapped_preprocessing_is_found(cache, monkeypatch):
    real = batches.to_square
    monkeypatch.setattr(
        batches, "to_square", lambda image, *rest: real(Image.merge("RGB", image.split()[::-1]), *rest)
    )  # BGR
    assert not any(c.agrees for c in compare(cache))


def test_other_weights_that_claim_to_be_the_same_are_found_tap_by_tap(cache):
    backbone = FakeBackbone()
    backbone.matrices["blocks.1"] = backbone.matrices["blocks.1"] * 1.01
    assert {c.tap for c in compare(cache, backbone=backbone) if not c.agrees} == {"blocks.1"}


def test_changed_weights_are_refused_with_every_way_out(cache):
    with pytest.raises(LofftaError, match="was made with another recipe") as caught:
        compare(cache, backbone=FakeBackbone(seed=1))
    assert caught.value.exit_code == 1
    assert "bring back what made the store and run the same command again" in caught.value.remedy
    assert re.search(r"loffta drop \S+ fake-[0-9a-f]{8} --yes", caught.value.remedy)


def test_an_image_that_has_gone_bad(cache):
    found = compare(cache, N, PngSource(N, {7: b""}))
    (gone,) = [c for c in found if not c.agrees]
    assert (gone.worst, gone.what, gone.tap) == ("0007.png", "cannot be used any more: empty file", "every tap")
    assert all(c.images == 18 for c in found if c.agrees)


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float16, np.float32]), st.floats(1e-4, 1e-1))
def test_distance_is_the_definition(seed, dtype, noise):
    rng = np.random.default_rng(seed)
    stored = rng.normal(size=(3, 4, 5)).astype(dtype)
    fresh = (stored + noise * rng.normal(size=stored.shape)).astype(dtype)
    apart = distance(stored, fresh)
    a, b = stored.astype(float).ravel(), fresh.astype(float).ravel()
    assert apart.relative_rms == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert apart.max_abs == max(abs(a - b))
    assert apart.badness == pytest.approx(max(apart.relative_rms, max(abs(a - b)) / max(abs(a)) / 10))


def test_one_wrong_value_among_many_is_found():
    """Its RMS hides in a million values; its size does not."""
    stored = np.ones(1_000_000, np.float16)
    fresh = stored.copy()
    fresh[7] = 1.5
    apart = distance(stored, fresh)
    assert apart.relative_rms < TOLERANCE["float16"] < apart.badness


@pytest.mark.parametrize(
    ("stored", "fresh", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], (0.0, 0.0, 0.0)),
        ([0.0, 0.0], [0.0, 2.0], (np.inf, 2.0, np.inf)),
        ([1.0, 1.0], [1.0, np.nan], (np.inf, np.inf, np.inf)),
    ],
)
def test_distances_without_a_scale(stored, fresh, expected):
    assert tuple(distance(np.array(stored, np.float32), np.array(fresh, np.float32))) == expected


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_the_last_bits_of_a_network_agree_and_a_hundredth_does_not(dtype, seed):
    rng = np.random.default_rng(seed)
    exact = rng.normal(size=(14, 14, 64)).astype(np.float32)
    stored = exact.astype(dtype)
    for noise, agrees in ((1e-4, True), (1e-2, False)):
        fresh = (exact * (1 + noise * rng.normal(size=exact.shape))).astype(dtype)
        assert (distance(stored, fresh).badness <= TOLERANCE[dtype]) is agrees


@pytest.mark.parametrize(
    ("dtype", "recipe", "expected"),
    [
        ("float16", {}, 2e-3),
        ("float32", {"precision": "fp32"}, 1e-3),
        ("float16", {"precision": "bf16"}, 2e-2),
        ("float32", {"precision": "fp16"}, 5e-3),
        ("int8", {"precision": "fp16"}, 2e-2),
    ],
)
def test_tolerances(cache, dtype, recipe, expected):
    store, array = cache.stores()[0], cache.stores()[0].arrays[0]
    store.info.recipe.pop("precision")
    store.info.recipe.update(recipe)
    layout = SimpleNamespace(dtype=np.dtype(dtype))
    object.__setattr__(array, "layout", layout)
    assert tolerance_of(store, array) == expected


VIT = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32", "--limit", "6", "--unit-images", "4"]


def test_the_command(tmp_path, monkeypatch, capsys):
    root = tmp_path / "a cache"
    words = ["extract", "demo:digits", "--cache", str(root), *VIT, "--device", "cpu"]
    assert main([*words, "--kinds", "grid,mean"]) == 0
    assert main(["verify", str(root), "--recompute", "3", "--device", "cpu", "--json"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"/grid-0:\n.*\n.*\n +blocks.5 +agrees ", out)
    told = json.loads(out.splitlines()[-1])["recomputed"]
    assert [(c["images"], c["agrees"]) for c in told] == [(3, True)] * 2
    real = batches.to_square
    monkeypatch.setattr(batches, "to_square", lambda image, *rest: real(ImageOps.flip(image), *rest))
    assert main(["verify", str(root), "--recompute", "3", "--device", "cpu"]) == 4
    out, err = capsys.readouterr()
    assert re.search(r"/mean-0:\n.*\n.*\n +blocks.5 +DISAGREES ", out)
    assert "2 taps disagree with fresh features, the first test_vit-" in err
    assert re.search(r"/grid-0, blocks.5, image \S+\n", err)
    assert f"loffta drop '{root}' test_vit-" in err


def test_damage_comes_first(tmp_path, capsys):
    root = tmp_path / "cache"
    assert main(["extract", "demo:digits", "--cache", str(root), *VIT, "--device", "cpu"]) == 0
    next(root.glob("stores/*/grid-0/c.0.*")).unlink()
    assert main(["verify", str(root), "--recompute", "3", "--images", "--json"]) == 4
    out, err = capsys.readouterr()
    assert "1 unit is damaged" in err
    told = json.loads(out.splitlines()[-1])
    assert (told["recomputed"], told["altered_images"]) == ([], [])


def test_zero_images_is_a_usage_error(tmp_path, capsys):
    assert main(["verify", str(tmp_path), "--recompute", "0"]) == 2
    assert "--recompute" in capsys.readouterr().err
