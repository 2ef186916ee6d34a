"""Where features are kept, from sizes and free memory: chosen by hand here, arithmetic in words."""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from loffta.dataset.features import choose_features
from loffta.errors import UsageError
from loffta.feed import modes as feed_modes
from loffta.feed.modes import Placement, bytes_per_image, choose_placements, describe_placements, is_cold
from loffta.machine import process
from tests.caches import FakeStore, make_cache, make_table

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
N_ROWS = 10
GRID, SMALL = 16 * 16 * 128 * 4, 8 * 8 * 4 * 4  # bytes an image: 131,072 and 1,024


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A large grid, a small one and the means of the large one; float32."""
    grids = {"s.0": np.zeros((16, 16, 16, 128), np.float32), "s.1": np.zeros((16, 8, 8, 4), np.float32)}
    cache = make_cache(
        tmp_path_factory.mktemp("modes") / "cache",
        make_table(np.zeros(16), ["train"] * 16),
        [FakeStore("net", grids, dtype="float32")],
    )
    found = choose_features(cache, ["net"], ("grid",), default_taps="all")
    return [*found, *choose_features(cache, ["net:s.0"], ("mean",), default_taps="all")]


def set_free(monkeypatch, host, device=0):
    monkeypatch.setattr(process, "free_memory_bytes", lambda: int(host))
    monkeypatch.setattr(feed_modes, "_free_device_bytes", lambda _: int(device))


def modes(features, device=CPU, wanted="auto"):
    return [placement.mode for placement in choose_placements(features, N_ROWS, device, wanted)]


def test_bytes_are_those_that_memory_keeps(features):
    assert [bytes_per_image([feature]) for feature in features] == [GRID, SMALL, 128 * 4]
    assert bytes_per_image(features) == GRID + SMALL + 512


def test_auto_fills_half_of_the_memory_smallest_first(features, monkeypatch):
    need = 2 * N_ROWS * (GRID + SMALL + 512)
    set_free(monkeypatch, need)
    assert modes(features) == ["host", "host", "host"]
    set_free(monkeypatch, need - 2)
    assert modes(features) == ["stream", "host", "host"]
    set_free(monkeypatch, 2 * N_ROWS * 512)
    assert modes(features) == ["stream", "stream", "host"]
    set_free(monkeypatch, 0)
    assert modes(features) == ["stream", "stream", "stream"]


def test_auto_fills_the_accelerator_first(features, monkeypatch):
    need = 2 * N_ROWS * (GRID + SMALL + 512)
    set_free(monkeypatch, need, need)
    assert modes(features, CUDA) == ["device", "device", "device"]
    assert modes(features, CPU) == ["host", "host", "host"]
    set_free(monkeypatch, need, need - 2)
    assert modes(features, CUDA) == ["host", "device", "device"]
    set_free(monkeypatch, 2 * N_ROWS * SMALL, 2 * N_ROWS * 512)
    assert modes(features, CUDA) == ["stream", "host", "device"]


def test_small_features_are_held_beside_large_ones_that_are_streamed(features, monkeypatch):
    set_free(monkeypatch, 1e9)
    assert choose_placements(features, N_ROWS, CPU, "stream") == [
        Placement("stream", "as asked"),
        Placement("host", "1 kB an image"),
        Placement("host", "1 kB an image"),
    ]
    assert modes(features[1:], wanted="stream") == ["stream", "stream"]  # nothing large: as asked
    set_free(monkeypatch, 2 * N_ROWS * SMALL)
    assert modes(features, wanted="stream") == ["stream", "host", "stream"]  # where they fit


def test_what_is_asked_for_is_done_while_a_tenth_is_left(features, monkeypatch):
    need = N_ROWS * (GRID + SMALL + 512)
    set_free(monkeypatch, need / 0.9 + 1, need / 0.9 + 1)
    assert modes(features, wanted="host") == ["host"] * 3
    assert modes(features, CUDA, "device") == ["device"] * 3
    set_free(monkeypatch, 1.1 * need, 1.1 * need)
    with pytest.raises(UsageError, match=r"take 1.3 MB, and 1.5 MB of free memory are too little(.|\n)*--feed host"):
        modes(features, wanted="host")
    with pytest.raises(
        UsageError, match=r"of free device memory are too little(.|\n)*--feed device(.|\n)*--feed stream"
    ):
        modes(features, CUDA, "device")


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_cuda_there_is_no_device_mode(features, device):
    expected = rf"cannot be kept on device '{device}'\n  where:  --feed device\n  remedy: use --feed host"
    with pytest.raises(UsageError, match=expected):
        modes(features, torch.device(device), "device")


def test_free_device_memory_counts_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4)
    assert feed_modes._free_device_bytes(CUDA) == 75


def test_cold_is_what_the_page_cache_cannot_keep(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert not is_cold(1000)
    assert is_cold(1001)


def test_one_line_says_it_all(features, monkeypatch):
    set_free(monkeypatch, 2 * N_ROWS * (SMALL + 512))
    placed = choose_placements(features, N_ROWS, CPU)
    big, small = (feature.array.paths.name for feature in features[:2])
    assert describe_placements(features, placed, N_ROWS) == (
        f"stream: {big} (1.3 MB, more than the 0 B left of half of free memory); "
        f"host: {small}, mean of {big} (15.4 kB, fits half of the 30.7 kB of free memory)"
    )
    assert "\n" not in describe_placements(features, placed, N_ROWS)


def test_arrays_of_one_store_are_named_together(features):
    placed = [Placement("stream", "as asked")] * 3
    (big, small), store = (f.array.paths.folder.name for f in features[:2]), features[0].store.name
    assert describe_placements(features, placed, N_ROWS).startswith(
        f"stream: {store}/{{{big},{small}}}, mean of {store}/{big} (1.3 MB, as asked)"
    )
