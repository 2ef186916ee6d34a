"""What is measured and what is advised; figures themselves are the machine's and are not compared."""

import os

import numpy as np
import pytest
import torch

from loffta.dataset.features import choose_features
from loffta.errors import LofftaError, UsageError
from loffta.heads.base import HeadBase
from loffta.heads.linear import LinearHead, LinearRecipe
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader
from loffta.training import bench as module
from loffta.training.bench import advise, bench
from loffta.training.bench_parts import Job, evict, train_step
from tests.caches import FakeStore, make_cache, make_table, toy_cache

PARTS = {"disk": 9.0, "page cache": 1.0, "crc32c": 1.0, "reduce": 1.0, "prepare": 2.0, "head": 3.0}


def advice(waited=0.0, *, parts=None, streams=False, cold=False, fits_host=True, dtypes=("float16",), pools=False):
    found = PARTS | (parts or {})
    return advise(found, waited, streams=streams, cold=cold, fits_host=fits_host, dtypes=set(dtypes), pools=pools)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "the head itself takes most of a step: there is nothing to gain in the feed"),
        ({"parts": {"prepare": 4.0}}, "preparation takes most of a step, and no feed can help: choose fewer taps"),
        (
            {"parts": {"reduce": 4.0}, "pools": True},
            "dequantising take most of a step: train with --feed host, which pools once, or extract with --kinds mean",
        ),
        ({"parts": {"reduce": 4.0}, "pools": True, "fits_host": False}, "of a step: extract with --kinds mean"),
        ({"parts": {"reduce": 4.0}, "dtypes": ["int8"]}, "of a step: extract with --dtype float16"),
        ({"parts": {"reduce": 4.0}}, "of a step: choose fewer taps with --features"),
        (
            {"parts": {"copy": 4.0}, "dtypes": ["int8"]},
            "copies to the device take most of a step: train with --feed device if the features fit there, or choose",
        ),
        ({"parts": {"copy": 4.0}}, "fit there, or extract with --dtype int8, which halves the bytes, or choose fewer"),
        ({"waited": 0.5, "dtypes": ["float32"]}, "memory: extract with --dtype float16, which halves the bytes, or"),
        ({"waited": 0.5, "dtypes": ["int8", "float16"]}, "memory: extract with --dtype int8, which halves the bytes"),
        ({"waited": 0.5, "streams": True}, "waits for data 50% of the time: train with --feed host"),
        (
            {"waited": 0.5, "streams": True, "fits_host": False, "cold": True},
            "the disk is read in every epoch: extract with --dtype int8, which halves the bytes, or choose fewer taps",
        ),
        (
            {"waited": 0.5, "streams": True, "fits_host": False, "dtypes": ["int8"]},
            "though it comes from the page cache: choose fewer taps with --features, or ask for more CPUs",
        ),
        ({"parts": {"augment": 4.0}}, "augmentation takes most of a step: leave a part of it out"),
        ({"waited": 0.5}, "though it comes from memory: extract with --dtype int8"),
    ],
)
def test_advice(options, expected):
    assert expected in advice(**options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_nothing_is_advised_that_the_store_is_already(dtype):
    for most in ("reduce", "copy", "prepare", "head", "augment"):
        for waited in (0.0, 0.5):
            for streams, cold, fits in [(False, False, True), (True, False, False), (True, True, False)]:
                parts = {"parts": {most: 50.0}, "pools": True, "streams": streams, "cold": cold, "fits_host": fits}
                assert f"--dtype {dtype}" not in advice(waited, dtypes=[dtype], **parts)


def test_reading_is_no_reason_while_nobody_waits():
    assert advice(0.09, parts={"disk": 1e3}) == advice()
    assert "waits for data 10%" in advice(0.1, parts={"disk": 1e3})


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize(
    ("feed", "head", "between"),
    [
        ("host", "combo", ["memory"]),
        ("host", "linear", ["hold", "memory"]),  # a mean of the grid: taken once
        ("stream", "linear", ["page cache"]),
    ],
)
def test_parts_are_those_of_the_feed_and_shares_add_up(tmp_path, dtype, feed, head, between):
    grids = {"a.0": np.random.default_rng(0).normal(size=(40, 3, 3, 4)).astype("f4")}
    labels = np.arange(40) % 3
    root = tmp_path / "cache"
    make_cache(root, make_table(labels, ["train"] * 40), [FakeStore("net", grids, dtype=dtype)], bad=(3,))
    small = {"width": 8, "depth": 1} if head == "combo" else {}
    found = bench(root, head=head, settings=small, batch_size=16, seconds=0.05, device="cpu", feed=feed)
    assert [part["part"] for part in found["parts"]] == ["disk", "crc32c", *between, "reduce", "prepare", "head"]
    first = {part["part"] for part in found["parts"] if part["share_first_epoch"] is not None}
    later = {part["part"] for part in found["parts"] if part["share_later"] is not None}
    assert first == {"disk", "crc32c", *between, "reduce", "prepare", "head"} - {"page cache"}
    assert later == {*between, "reduce", "prepare", "head"} - {"hold"}
    for key in ("share_first_epoch", "share_later"):
        assert sum(part[key] for part in found["parts"] if part[key] is not None) == pytest.approx(1)
    n_bytes = 36 * np.dtype(dtype).itemsize
    held = (4 if head == "linear" else 36) * (4 if dtype == "int8" and head == "linear" else np.dtype(dtype).itemsize)
    carried = {"disk": n_bytes, "crc32c": n_bytes, "page cache": n_bytes, "memory": held}
    assert (found["bytes_per_image"], found["images"], found["batch_size"]) == (n_bytes, 39, 16)
    for part in found["parts"]:
        assert part["images_per_s"] == pytest.approx(16 / (part["ms"] / 1000))
        rate = carried[part["part"]] * part["images_per_s"] / 1e9 if part["part"] in carried else None
        assert part["gb_per_s"] == (rate and pytest.approx(rate))
    assert found["step"]["images_per_s"] > 0
    assert 0 <= found["step"]["waited"] < 1
    assert feed in found["feed"]


def test_nothing_is_written(tmp_path):
    root = toy_cache(tmp_path / "cache").paths.root

    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}

    before = state()
    bench(root, head="linear", seconds=0.05, device="cpu", feed="stream")
    assert state() == before


def test_a_set_that_the_page_cache_cannot_keep_is_read_from_the_disk(tmp_path, monkeypatch):
    root = toy_cache(tmp_path / "cache").paths.root
    dropped = []
    monkeypatch.setattr(module, "evict", lambda reader, rows, taps: dropped.append((len(rows), taps)))
    monkeypatch.setattr("loffta.machine.process.free_memory_bytes", lambda: 100)
    found = bench(root, head="combo", settings={"width": 8, "depth": 1}, batch_size=60, seconds=0.05, device="cpu")
    assert dropped[-2:] == [(60, None), (60, None)]  # before the steps, both arrays
    assert found["step"]["order"] == "windowed"
    assert next(part for part in found["parts"] if part["part"] == "disk")["share_later"] > 0
    assert found["feed"].startswith("stream: ")


def test_what_is_evicted_are_the_images_bytes(tmp_path, monkeypatch):
    grids = {tap: np.random.default_rng(0).normal(size=(20, 3, 3, 4)).astype("f2") for tap in ("a.0", "a.1")}
    cache = make_cache(tmp_path / "cache", make_table(np.zeros(20), ["train"] * 20), [FakeStore("net", grids)])
    (feature,) = choose_features(Cache.open(cache.paths.root), ["net:a.1"], ("grid",), default_taps="all")
    seen = []

    def fadvise(fd, offset, length, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        seen.append(os.pread(fd, length, offset)[:-4])  # without the crc32c

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    evict(ArrayReader(feature.array.paths), np.array([17, 2, 9]), [1])
    assert set(seen) == {grids["a.1"][row].tobytes() for row in (17, 2, 9)}
    assert len(seen) == 3
    monkeypatch.delattr(os, "posix_fadvise")
    evict(ArrayReader(feature.array.paths), np.array([1]), None)
    assert len(seen) == 3  # not on this system


def test_a_step_trains_whatever_a_head_gives():
    """Towards zero, for one tensor as for several; the global generator is left alone."""

    class Two(HeadBase):
        default_taps = "last"

        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)

        def prepare(self, features):
            return features[0].flatten(1)

        def forward(self, prepared, rng=None):
            return {"first": self.first(prepared), "rest": [self.second(prepared), prepared]}

    head = Two()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    job = Job([], np.arange(4), head, LinearRecipe(), optimizer, torch.device("cpu"), 4)
    prepared = head.prepare([torch.ones(4, 1, 3)])
    before, state = sum(p.abs().sum() for p in head(prepared)["rest"][:1]), torch.random.get_rng_state()
    for _ in range(20):
        train_step(job, prepared)
    assert sum(p.abs().sum() for p in head(prepared)["rest"][:1]) < before
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"head": "linaer"}, UsageError, "did you mean linear"),
        ({"features": ("goood",)}, UsageError, "did you mean good"),
        ({"settings": {"epoch": 3}}, UsageError, "did you mean epochs"),
        ({"seconds": 0.0}, UsageError, "give at least 1"),
        ({"feed": "device", "device": "cpu"}, UsageError, "use --feed host"),
    ],
)
def test_errors(tmp_path, options, error, match):
    root = toy_cache(tmp_path / "cache").paths.root
    with pytest.raises(error, match=match):
        bench(root, **{"head": "linear"} | options)


def test_no_cache(tmp_path):
    with pytest.raises(LofftaError, match="there is no cache here"):
        bench(tmp_path / "none", head="linear")


def test_the_head_is_the_one_that_train_builds(tmp_path, monkeypatch):
    """In training mode, with the recipe's resolved arguments."""
    built = []
    monkeypatch.setattr(
        LinearHead, "prepare", lambda self, features: (built.append(self), features[0].flatten(1).float())[1]
    )
    bench(toy_cache(tmp_path / "cache").paths.root, head="linear", features=("good:a.0",), seconds=0.05, device="cpu")
    assert built
    assert all(head.training and head.classify.weight.shape == (3, 6) for head in built)


def test_augmentation_is_a_part_where_it_is_asked_for(tmp_path):
    root = toy_cache(tmp_path / "cache").paths.root
    small = {"width": 8, "depth": 1}
    found = bench(root, head="combo", settings=small, augmentation="loff-ta", batch_size=16, seconds=0.05, device="cpu")
    assert [part["part"] for part in found["parts"]][-4:] == ["reduce", "augment", "prepare", "head"]
    with pytest.raises(UsageError, match="unknown augmentation 'loft-ta'"):
        bench(root, head="combo", augmentation="loft-ta")
