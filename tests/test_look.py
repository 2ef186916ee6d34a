"""Background and range from the option to the feature: recipes, old caches, repair, fresh features; all with fakes."""

import io
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from loffta.config import BackboneConfig, OnlineConfig, TrainConfig
from loffta.dataset.command_lines import extract_command
from loffta.dataset.features import choose_features
from loffta.errors import TooManyBadImages
from loffta.extraction.extract import extract
from loffta.extraction.repair import request_config
from loffta.machine.process import StopFlag
from loffta.online.recompute import recompute
from loffta.online.stream import FreshStream
from loffta.online.train import _resolve
from loffta.runs.origins import Origins
from loffta.store.cache import Cache
from loffta.store.inventory import take_inventory
from loffta.store.recipe import recipe_hash
from tests.fakes import FakeBackbone, PngSource, fake_config, picture, png

N = 10
CLEAR = 3  # the row of the image that is transparent in part
CPU = torch.device("cpu")


def clear_picture():
    """[16, 16, 4]: drawn in black, transparent to the left: on black nothing is to be seen."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, 8:, 3] = 255
    return pixels


def transparent():
    return PngSource(N, {CLEAR: png(clear_picture())})


def fill(cache, source=None, **options):
    return extract(fake_config(cache, **options), source or transparent(), lambda _: FakeBackbone(), StopFlag())


def no_model(wanted):
    pytest.fail("a model was loaded")


def stored(cache, index=0):
    """[n, L, D] of one store's `mean` of its last tap."""
    import zarr

    store = sorted(p for p in cache.glob("stores/*") if p.is_dir())[index]
    return np.asarray(zarr.open_group(store, mode="r")["mean-1"])


def expected_mean(pixels):
    """Of stages.2, of one image of 16 x 16."""
    tokens = FakeBackbone()(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None], ["stages.2"])
    return tokens["stages.2"].grid.double().mean((1, 2))[0].numpy()


@pytest.mark.parametrize(
    ("options", "colour"), [({}, 255), ({"background": "black"}, 0), ({"background": "#808080"}, 128)]
)
def test_features_are_those_of_the_image_on_its_background(tmp_path, options, colour):
    fill(tmp_path, **options)
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = colour
    np.testing.assert_allclose(stored(tmp_path)[CLEAR, 0], expected_mean(pixels), rtol=1e-3, atol=1e-3)


def test_a_recipe_names_its_look_and_one_of_old_keeps_its_hash(tmp_path):
    fill(tmp_path / "new")
    (new,) = Cache.open(tmp_path / "new").stores()
    assert {"background": "#ffffff", "range": "auto"}.items() <= new.info.recipe["input"].items()
    assert {"background": "#ffffff", "range": "auto"}.items() <= new.info.request.items()
    fill(tmp_path / "old", background="black", range="clip")
    (old,) = Cache.open(tmp_path / "old").stores()
    before = {  # what a loffta without backgrounds wrote, by hand
        "backbone": "fake",
        "weights": FakeBackbone().weights.digest,
        "input": {
            **{"image_px": 16, "resize": "squash", "interpolation": "bicubic"},
            **{"mean": list(FakeBackbone().mean), "std": list(FakeBackbone().std)},
        },
        **{"pool": None, "view": None, "precision": "fp32", "dtype": "float16"},
    }
    assert old.info.recipe == before
    assert old.name == f"fake-{recipe_hash(before)}"
    assert not {"background", "range"} & {*old.info.request, *json.loads((tmp_path / "old/cache.json").read_text())}


def test_a_cache_of_old_goes_on_as_it_was(tmp_path, capsys):
    """Nobody's terabytes are made anew for a default that changed: the cache's own look holds where none is named."""
    fill(tmp_path, background="black", range="clip")
    report = extract(fake_config(tmp_path), transparent(), no_model, StopFlag())
    assert report.units == 0
    capsys.readouterr()
    assert fill(tmp_path, PngSource(N + 8, {CLEAR: png(clear_picture()), N: png(clear_picture())})).units == 2
    assert "transparent images are shown on black" in capsys.readouterr().err
    assert len(Cache.open(tmp_path).stores()) == 1
    rows = stored(tmp_path)
    assert np.array_equal(rows[N], rows[CLEAR])
    np.testing.assert_allclose(rows[N, 0], expected_mean(np.zeros((16, 16, 3), np.uint8)), rtol=1e-3, atol=1e-3)


def test_an_old_cache_takes_a_store_of_another_look_beside(tmp_path):
    fill(tmp_path, background="black", range="clip")
    fill(tmp_path, PngSource(N, {CLEAR: png(clear_picture())}), background="white", range="auto")
    assert len({store.name for store in Cache.open(tmp_path).stores()}) == 2
    assert not np.array_equal(stored(tmp_path, 0)[CLEAR], stored(tmp_path, 1)[CLEAR])
    others = [row for row in range(N) if row != CLEAR]
    assert np.array_equal(stored(tmp_path, 0)[others], stored(tmp_path, 1)[others])  # without alpha they are the same


@pytest.mark.parametrize("look", [{"background": "black", "range": "clip"}, {"background": "#102030"}, {}])
def test_everything_that_makes_features_anew_uses_the_recipes_look(tmp_path, look):
    fill(tmp_path, **look)
    cache = Cache.open(tmp_path)
    (store,) = cache.stores()
    compared = list(recompute(cache, transparent(), lambda _: FakeBackbone(), N))
    assert all(entry.agrees and entry.relative_rms < 1e-3 for entry in compared)
    features = choose_features(cache, [], ("mean",), default_taps="stages.2")
    fresh = FreshStream(
        Origins.of(features, ()).features,
        transparent(),
        transparent().listing(),
        [CLEAR],
        load=lambda _: FakeBackbone(),
        device=CPU,
    )
    (batch,) = fresh
    assert np.array_equal(batch.features[0][0].numpy(), stored(tmp_path)[CLEAR])
    again = request_config(cache, store)  # a repair asks for the same store, whatever the cache's default is
    report = extract(again.model_copy(update={"source": "fake:png"}), transparent(), no_model, StopFlag())
    assert report.units == 0


def test_a_command_that_adds_to_a_store_names_its_look_where_it_is_not_the_caches(tmp_path):
    fill(tmp_path, background="black", range="clip")
    fill(tmp_path, background="white", range="auto")
    cache = Cache.open(tmp_path)
    commands = [extract_command(cache, store, ["stages.2"]) for store in cache.stores()]
    named = ["--background '#ffffff' --range auto" in command for command in commands]
    assert sorted(named) == [False, True]
    assert sum("--background" in command for command in commands) == 1


def dark():
    """A 16-bit image that may be of 12 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_ambiguous_is_set_aside_until_a_range_is_named_in_the_same_cache(tmp_path):
    source = PngSource(N, {1: dark()})
    with pytest.raises(TooManyBadImages, match=r"1 of 10 images .*16-bit values that are all below 4096"):
        fill(tmp_path, source)
    report = fill(tmp_path, source, range="0..4095")
    assert report.bad == 0
    found = [i for i in (0, 1) if np.isfinite(stored(tmp_path, i)[1].astype(float)).all()]
    assert len(found) == 1
    grey = (np.arange(256).reshape(16, 16, 1) * 16 * 255 / 4095 + 0.5).astype(np.uint8).repeat(3, axis=2)
    np.testing.assert_allclose(stored(tmp_path, found[0])[1, 0], expected_mean(grey), rtol=1e-3, atol=1e-3)


def test_what_was_seen_of_the_images_is_in_the_result_and_in_info(tmp_path):
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture(i)[:10, :10]).quantize(16) for i in range(4)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    flat = png(np.full((9, 9, 3), 7, np.uint8))
    source = PngSource(N, {0: flat, 5: buffer.getvalue(), 6: flat, 7: b"no image", 8: png(clear_picture()[:, :8])})
    report = fill(tmp_path, source, max_bad_frac=1.0)
    assert (report.flat, report.pages_ignored, report.several_pages, report.untold) == (3, 3, 1, 0)
    held = take_inventory(Cache.open(tmp_path))
    expected = {"flat": 3, "pages_ignored": 3, "several_pages": 1, "untold": 0, "not_taken": {}}
    assert {name: held[name] for name in expected} == expected
    assert held["look"] == {"background": "#ffffff", "range": "auto"}
    again = fill(tmp_path, source, max_bad_frac=1.0)
    assert (again.units, again.flat, again.pages_ignored) == (0, 3, 3)


def test_an_online_run_keeps_its_look_and_a_new_one_begins_white(tmp_path):
    online = OnlineConfig(source="fake:png", backbone=BackboneConfig(name="fake"))
    new = _resolve(online, tmp_path / "new")
    assert (new.background, new.range) == ("#ffffff", "auto")
    config = TrainConfig(cache=tmp_path, head="online-linear", online=online).model_dump(mode="json")
    for name in ("background", "range"):  # a run of old knows no such words
        del config["online"][name]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(config))
    assert _resolve(online, tmp_path / "old") == online  # as before: it goes on, and on black
    named = online.model_copy(update={"background": "#102030"})
    assert _resolve(named, tmp_path / "old") == named
