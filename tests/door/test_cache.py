"""Features out of a cache are the arrays that went in, for the rows, keys and labels that belong to them."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import loffta
from loffta.door.cache import stored_kind
from tests.caches import FakeStore, make_cache, make_table, separable

N, BAD = 40, (3, 17)
LABELS, GRIDS = separable(N)
_, OTHER = separable(N, shape=(3, 3), dim=4, seed=1)
PREFIX = np.random.default_rng(2).normal(size=(N, 2, 6)).astype(np.float32)
SPLITS = ["train"] * 24 + ["test"] * 16
TRAIN = [row for row in range(24) if row not in BAD]


def half(values):
    """As float16 keeps them."""
    return values.astype(np.float16).astype(np.float32)


def store(**options):
    grids = {"a.0": GRIDS, "a.1": GRIDS + 1, "b.0": OTHER}
    prefixes = {"a.0": PREFIX, "a.1": PREFIX * 2}
    return FakeStore("net", grids, kinds=("grid", "prefix"), prefixes=prefixes, **options)


@pytest.fixture
def root(tmp_path):
    return make_cache(tmp_path / "cache", make_table(LABELS, SPLITS), [store()], bad=BAD).paths.root


def test_grids_of_several_taps(root):
    found = loffta.open_cache(root).features("net:a.0,a.1", kind="grid", split="train")
    expected = np.stack([half(GRIDS)[TRAIN], half(GRIDS + 1)[TRAIN]], axis=1)
    assert found.shape == (22, 2, 2, 2, 6)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.torch().dtype == torch.float32
    np.testing.assert_array_equal(found.torch(), expected)
    assert found.rows.tolist() == TRAIN
    assert found.keys == [f"train/{row:03d}.png" for row in TRAIN]
    np.testing.assert_array_equal(found.labels(), LABELS[TRAIN])
    assert found.left_out == {"bad": 2, "missing": 0}


def test_means_of_taps_of_any_shape_side_by_side(root):
    found = loffta.open_cache(root).features("net:all", kind="mean", split="test")
    parts = [half(half(grid)[24:].mean(axis=(1, 2))) for grid in (GRIDS, GRIDS + 1, OTHER)]
    assert found.shape == (16, 6 + 6 + 4)
    np.testing.assert_allclose(found.numpy(), np.concatenate(parts, axis=1), rtol=1e-3, atol=1e-3)


def test_class_tokens_and_prefix_tokens(root):
    cache = loffta.open_cache(root)
    prefix = cache.features("net:a.0,a.1", kind="prefix").numpy()
    expected = np.delete(np.stack([half(PREFIX), half(PREFIX * 2)], axis=1), BAD, axis=0)
    np.testing.assert_array_equal(prefix, expected)
    classes = cache.features("net:a.0,a.1", kind="class").numpy()
    np.testing.assert_array_equal(classes, expected[:, :, 0].reshape(38, 12))


def test_int8_comes_out_decoded(tmp_path):
    root = make_cache(tmp_path / "cache", make_table(LABELS, SPLITS), [store(dtype="int8")]).paths.root
    found = loffta.open_cache(root).features("net:a.0", kind="grid").numpy()[:, 0]
    step = (GRIDS.max(axis=(0, 1, 2)) - GRIDS.min(axis=(0, 1, 2))) / 254  # 255 levels a channel
    assert (np.abs(found - GRIDS) <= step).all()
    assert (found != GRIDS).any()


def test_batches_are_the_array_and_stay_what_they_were(root):
    for kind in ("mean", "grid"):
        found = loffta.open_cache(root).features("net:a.1", kind=kind, split="train")
        batches = list(found.batches(5))
        assert [len(rows) for rows, _ in batches] == [5, 5, 5, 5, 2]
        np.testing.assert_array_equal(np.concatenate([features for _, features in batches]), found.numpy())
        assert np.concatenate([rows for rows, _ in batches]).tolist() == TRAIN


@pytest.mark.parametrize("kind", ["mean", "grid"])
def test_arrow(root, kind, tmp_path):
    found = loffta.open_cache(root).features("net:a.0,a.1", kind=kind, split="train")
    table = found.table()
    assert table.column("key").to_pylist() == found.keys
    assert table.column("label").to_pylist() == [f"class {label}" for label in LABELS[TRAIN]]
    with pq.ParquetWriter(tmp_path / "features.parquet", found.record_batches(7).schema) as writer:
        for batch in found.record_batches(7):
            writer.write_batch(batch)
    back = pq.read_table(tmp_path / "features.parquet")
    assert back.equals(table)
    column = back.column("features").combine_chunks()
    values = column.to_numpy_ndarray() if kind == "grid" else np.stack(column.to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(values, found.numpy())


def test_parts_of_a_selection(root):
    found = loffta.open_cache(root).features("net:a.0", kind="mean", split="train")
    whole = found.numpy()
    np.testing.assert_array_equal(found.take([4, 0, 4]).numpy(), whole[[4, 0, 4]])
    np.testing.assert_array_equal(found.take(found.labels() == 1).labels(), np.ones(8))
    assert found.take([]).numpy().shape == (0, 6)
    assert len(found.take([])) == 0


@pytest.mark.parametrize("context", ["fork", None])
def test_a_loader_with_workers_gives_every_image_once(root, context):
    found = loffta.open_cache(root).features("net:all", kind="mean", split="train")
    dataset = found.dataset()
    dataset[0]  # opens files here, which no worker may share
    options = {} if context is None else {"num_workers": 2, "multiprocessing_context": context}
    order = torch.Generator().manual_seed(0)
    batches = list(DataLoader(dataset, batch_size=4, shuffle=True, generator=order, **options))
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    given, there = (
        sorted([*row, label] for row, label in zip(rows.tolist(), of.tolist(), strict=True))
        for rows, of in ((features, labels), (found.torch(), found.labels()))
    )
    assert given == there


def test_a_dataset_can_be_sent(root):
    dataset = loffta.open_cache(root).dataset("net:a.0", split="train")
    before = dataset[5]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5][0], before[0])
    assert int(again[5][1]) == LABELS[TRAIN[5]]


def test_an_unfinished_cache_is_refused_and_what_is_there_is_counted(tmp_path):
    root = make_cache(tmp_path / "cache", make_table(LABELS, SPLITS), [store(missing=(1,))], bad=BAD).paths.root
    cache = loffta.open_cache(root)
    with pytest.raises(loffta.LofftaError, match=r"8 of the 24 images.*no features yet"):
        cache.features("net:a.0", split="train")
    found = cache.features("net:a.0", split="train", partial=True)
    assert found.rows.tolist() == [row for row in TRAIN if not 8 <= row < 16]
    assert found.left_out == {"bad": 2, "missing": 8}
    assert np.isfinite(found.numpy()).all()


def test_reading_writes_nothing(root):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}

    before = state()
    cache = loffta.open_cache(root)
    cache.features("net:a.0", kind="grid").table()
    cache.table()
    cache.dataset("net:a.0")[0]
    assert state() == before


def test_damage_is_an_error(root):
    (shard,) = (root / "stores").glob("*/prefix-0/c.0*")
    shard.write_bytes(shard.read_bytes()[:100] + b"?" + shard.read_bytes()[101:])
    with pytest.raises(loffta.DamageFound, match="row 1"):
        loffta.open_cache(root).features("net:a.0", kind="class", split="train").numpy()


def test_facts_of_the_set(root):
    cache = loffta.open_cache(root)
    assert (len(cache), cache.splits) == (40, {"train": 24, "test": 16})
    assert cache.classes == ("class 0", "class 1", "class 2")
    assert list(cache.stores.values()) == [("a.0", "a.1", "b.0")]
    assert cache.source == "folder:pictures"
    np.testing.assert_array_equal(cache.labels("test"), LABELS[24:])
    assert cache.table("train").column("row").to_pylist() == list(range(24))
    assert "folder:pictures" in repr(cache)
    assert "a.0" in repr(cache.features("net:a.0"))


def test_images_without_a_label_are_refused_until_they_are_left_out(tmp_path):
    labels = np.where(np.arange(N) % 5 == 0, -1, LABELS)
    root = make_cache(tmp_path / "cache", make_table(labels, SPLITS), [store()], bad=BAD).paths.root
    found = loffta.open_cache(root).features("net:a.0", split="train")
    with pytest.raises(loffta.LofftaError, match=r"5 of the 22 images have no label(?s:.*)labelled\(\)"):
        found.labels()
    assert found.labelled().rows.tolist() == [row for row in TRAIN if row % 5]
    assert found.labelled().left_out == {"bad": 2, "missing": 0, "unlabelled": 5}
    assert found.table().column("label").null_count == 5


def test_labels_of_other_kinds(tmp_path):
    sets = [(0, 2) if row % 2 else () for row in range(N)]
    several = replace(make_table(np.full(N, -1), SPLITS, classes=("a", "b", "c")), label_sets=sets)
    numbers = replace(make_table(np.full(N, -1), SPLITS, classes=()), values=np.arange(N) / 2)
    for table, expected, shown in (
        (several, [[1, 0, 1] if row % 2 else [0, 0, 0] for row in range(N)], [[], ["a", "c"]]),
        (numbers, (np.arange(N) / 2).tolist(), [0.0, 0.5]),
    ):
        cache = loffta.open_cache(make_cache(tmp_path / table.label_kind, table, [store()]).paths.root)
        assert cache.features("net:a.0").labels().tolist() == expected
        assert cache.table().column("label").to_pylist()[:2] == shown


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"features": ("net:a.9",)}, "a.9"),
        ({"features": ("nut",)}, "did you mean net"),
        ({"features": ("net:a.0",), "split": "trian"}, "did you mean train"),
        ({"features": ("net:all",), "kind": "grid"}, r"2 shapes: \(2, 2, 6\), \(3, 3, 4\)"),
    ],
)
def test_what_cannot_be_had_says_what_can(root, ask, message):
    with pytest.raises(loffta.LofftaError, match=message):
        loffta.open_cache(root).features(*ask.pop("features"), **ask)


def test_kinds():
    assert [stored_kind(kind) for kind in ("mean", "class")] == ["mean", "prefix"]
    with pytest.raises(loffta.UsageError, match="use grid, prefix, mean, class"):
        stored_kind("max")


def test_registers_are_no_class_token(tmp_path):
    made = make_cache(tmp_path / "cache", make_table(LABELS, SPLITS), [store(registers_only=True)])
    with pytest.raises(loffta.LofftaError, match="no class token"):
        loffta.open_cache(made.paths.root).features("net:a.0", kind="class")


def test_short_names_of_the_zoo(tmp_path):
    named = replace(store(), backbone="vit_base_patch14_dinov2.lvd142m")
    made = make_cache(tmp_path / "cache", make_table(LABELS, SPLITS), [named])
    assert loffta.open_cache(made.paths.root).features("dinov2-b:a.0").shape == (N, 6)


def test_no_cache(tmp_path):
    with pytest.raises(loffta.LofftaError, match="there is no cache here"):
        loffta.open_cache(tmp_path)


def test_arrow_types_are_what_other_programs_read(root):
    cache = loffta.open_cache(root)
    assert cache.features("net:a.0").record_batches().schema.field("features").type == pa.list_(pa.float32(), 6)
    grid = cache.features("net:a.0", kind="grid").record_batches().schema.field("features").type
    assert (grid.shape, grid.value_type) == ([1, 2, 2, 6], pa.float32())
