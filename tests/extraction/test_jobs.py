"""What a later run learns about a known store: stamps of touched files, taps that an older loffta did not list."""

import json
import os
from dataclasses import asdict

import pytest
import torch

from loffta.backbones import WeightsSource
from loffta.config import BackboneConfig
from loffta.errors import UsageError
from loffta.extraction.extract import extract
from loffta.extraction.jobs import prepare, with_look
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.tokens import TokenSpec
from tests.fakes import FakeBackbone, PngSource, fake_config


class Loader:
    """Makes the fake backbone from a file whose first byte is its seed, and counts."""

    def __init__(self, file):
        self.file, self.loads = file, 0

    def __call__(self, wanted):
        self.loads += 1
        seed, status = self.file.read_bytes()[0], self.file.stat()
        backbone = FakeBackbone(seed=seed)
        backbone.weights = WeightsSource(
            str(self.file), f"{seed:032x}", str(self.file), status.st_size, status.st_mtime_ns
        )
        return backbone


@pytest.fixture
def setting(tmp_path):
    """A finished cache of a store whose weights are a file: (config, load)."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"\3")
    backbone = BackboneConfig(name="fake", weights=str(file), image_px=16, taps="blocks.0")
    config = fake_config(tmp_path / "cache").model_copy(update={"backbones": (backbone,)})
    load = Loader(file)
    extract(config, PngSource(5), load, StopFlag())
    assert load.loads == 1
    return config, load


def again(config, load):
    load.loads = 0
    assert extract(config, PngSource(5), load, StopFlag()).units == 0
    return load.loads


def attributes(config):
    (path,) = (config.cache / "stores").glob("*/zarr.json")
    return path, json.loads(path.read_bytes())


def test_a_touched_file_is_loaded_once_to_compare_and_never_again(setting):
    config, load = setting
    path, before = attributes(config)
    assert again(config, load) == 0
    os.utime(load.file, ns=(1, 2))
    assert again(config, load) == 1
    assert again(config, load) == 0
    after = attributes(config)[1]
    assert after["attributes"]["loffta"]["weights"].pop("mtime_ns") == 2
    before["attributes"]["loffta"]["weights"].pop("mtime_ns")
    assert after == before
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_an_old_list_of_taps_learns_what_is_asked_for(setting):
    config, load = setting
    path, document = attributes(config)
    taps = document["attributes"]["loffta"]["taps"]
    document["attributes"]["loffta"]["taps"] = [tap for tap in taps if tap["tap"] != "blocks.1"]
    document["attributes"]["loffta"]["weights"].pop("adapter")  # as format 1 began
    path.write_text(json.dumps(document))
    assert again(config, load) == 0  # what it holds is asked for
    wanted = config.backbones[0].model_copy(update={"taps": "blocks.0,blocks.1"})
    more = config.model_copy(update={"backbones": (wanted,)})
    load.loads = 0
    assert extract(more, PngSource(5), load, StopFlag()).units == 1
    assert load.loads == 1
    assert again(more, load) == 0
    (store,) = Cache.open(config.cache).stores()
    assert list(store.info.taps) == [TokenSpec(**tap) for tap in taps]
    assert store.stored_taps() == ("blocks.0", "blocks.1")


def test_taps_that_another_process_added_stay(setting):
    """Another process adds a module's tap after this one has looked for its store."""
    config, load = setting
    os.utime(load.file, ns=(1, 2))
    path, document = attributes(config)
    added = TokenSpec("module:a", 4, 4, 2, 6)

    def load_late(wanted):
        document["attributes"]["loffta"]["taps"].insert(1, asdict(added))
        path.write_text(json.dumps(document))
        return load(wanted)

    cache = Cache.open(config.cache)
    job = prepare(
        cache, config.backbones[0], None, with_look(config, cache.look), load_late, {0: cache.rows_of_unit(0)}
    )
    expected = ["blocks.0", "module:a", "blocks.1", "stages.2"]
    assert [spec.tap for spec in job.store.info.taps] == expected
    assert [tap["tap"] for tap in attributes(config)[1]["attributes"]["loffta"]["taps"]] == expected


def test_a_misspelt_tap_of_a_finished_store_changes_nothing(setting):
    config, load = setting
    before = attributes(config)[0].read_bytes()
    wanted = config.backbones[0].model_copy(update={"taps": "blocks.7"})
    with pytest.raises(UsageError, match=r"unknown tap 'blocks\.7'"):
        extract(config.model_copy(update={"backbones": (wanted,)}), PngSource(5), load, StopFlag())
    assert attributes(config)[0].read_bytes() == before


def test_fake_tokens_are_what_was_stored(setting):
    """The setting itself: without it the tests above could pass on an empty cache."""
    config, load = setting
    (store,) = Cache.open(config.cache).stores()
    array = store.find("grid", "blocks.0")
    assert array.has_unit(0, range(5))
    assert torch.is_tensor(load(config.backbones[0]).matrices["blocks.0"])
