"""A packed cache trains and measures the heads of the cache that it was packed from, bit for bit."""

import numpy as np
import pytest

import loffta
from loffta.feed import sources
from loffta.store import zarr_reader
from loffta.store.packed_reader import PackedReader
from tests.caches import FakeStore, make_cache, make_table, separable

RECIPE = {"epochs": 1, "min_steps": 1, "batch_size": 8, "width": 16, "depth": 1}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A cache, and its packed copy: a float16 store of two taps and an int8 one."""
    root = tmp_path_factory.mktemp("packed")
    labels, grids = separable(44, shape=(4, 4), dim=32)
    grids = [np.round(grids * 8 + i) / 8 for i in range(3)]
    floats = FakeStore("floats", {"a.0": grids[0], "a.1": grids[1]}, kinds=("grid", "mean"))
    codes = FakeStore("codes", {"b.0": grids[2]}, dtype="int8")
    make_cache(root / "cache", make_table(labels, ["train"] * 30 + ["test"] * 14), [floats, codes], bad=(3, 40))
    done = loffta.pack(root / "cache", out=root / "packed", progress=False)
    assert {entry.codec for entry in done.arrays if "grid" in entry.array} == {"zstd"}
    return root / "cache", root / "packed"


@pytest.mark.parametrize("feed", ["stream", "host"])
def test_heads_and_results_are_the_same(caches, tmp_path, feed, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr(zarr_reader, "_told", set())
    opened, real = [], sources.open_array
    monkeypatch.setattr(sources, "open_array", lambda *args, **how: opened.append(real(*args, **how)) or opened[-1])
    found = []
    for cache in caches:
        out = tmp_path / cache.name
        options = {"features": ["floats:all", "codes:all"], "set": RECIPE, "feed": feed}
        loffta.train(cache, head="combo", out=out, device="cpu", **options)
        measured = loffta.evaluate(out, split="train", device="cpu", progress=False)
        heads = [file.read_bytes() for file in sorted(out.glob("seed-*/head.safetensors"))]
        tables = [file.read_bytes() for file in sorted(out.glob("predictions*.parquet"))]
        found.append((heads, tables, measured.metrics))
    assert (len(found[0][0]), len(found[0][1])) == (1, 2)
    assert found[0] == found[1]
    said = [line for line in capsys.readouterr().err.splitlines() if "is packed" in line]
    assert [line.split("-")[0] for line in said] == ["floats", "codes"]
    half = len(opened) // 2
    assert {type(reader) for reader in opened[half:]} == {PackedReader}
    assert PackedReader not in {type(reader) for reader in opened[:half]}


def test_features_in_hand_are_the_same(caches):
    for kind in ("grid", "mean"):
        plain, packed = (loffta.open_cache(cache).features("floats:all", kind=kind) for cache in caches)
        np.testing.assert_array_equal(packed.numpy(), plain.numpy())
        assert packed.left_out == {"bad": 2, "missing": 0}
