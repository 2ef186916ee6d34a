"""Fresh features against those of a cache, from the same images by the same networks: equal in every bit."""

import pytest
import torch

from loffta.dataset.features import choose_features
from loffta.errors import LofftaError
from loffta.feed.batches import Feed
from loffta.online.stream import FreshStream, read_pixels
from loffta.runs.origins import Origins
from tests.fakes import FakeBackbone, PngSource
from tests.online.runs import CPU, N, loader, make_fake_cache

BATCH = 5
BAD = {3: b"", 12: OSError("gone")}


def origins_of(cache, choices=(), kinds=("grid", "prefix", "mean")):
    features = choose_features(cache, choices, kinds, default_taps="all")
    return features, Origins.of(features, cache.table.classes).features


def stream(features, source, rows=range(N), *, load=None, batch_size=BATCH):
    return FreshStream(
        features, source, source.listing(), rows, load=load or loader(), device=CPU, batch_size=batch_size
    )


def fed(features, rows):
    with Feed(features, rows, batch_size=BATCH, mode="host") as feed:
        parts = [tuple(t.clone() for t in batch.features) for batch in feed.in_order()]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def streamed(fresh):
    parts = [batch.features for batch in fresh if batch.rows]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32"},
        {"dtype": "int8"},
        {"kinds": ("grid",)},  # means are pooled at reading
        {"kinds": ("grid",), "dtype": "int8"},
        {"pool": (2, 2)},
        {"views": 1},
    ],
    ids=str,
)
def test_they_are_the_stored_ones(tmp_path, options):
    cache = make_fake_cache(tmp_path / "cache", names=("fake", "fake1"), broken=BAD, **options)
    kinds = ("grid", "mean") if options.get("kinds") else ("grid", "prefix", "mean")
    views = tuple(store.name for store in cache.stores())
    features, fresh = origins_of(cache, views, kinds)
    rows = [row for row in range(N) if row not in BAD]
    for a, b in zip(
        fed(features, cache.table.rows_of("train+test")[rows]), streamed(stream(fresh, PngSource(N, BAD))), strict=True
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_taps_in_any_number_and_rows_in_any_order(tmp_path):
    cache = make_fake_cache(tmp_path / "cache")
    rows = [7, 3, 10, 11, 0, 19, 2]
    features, fresh = origins_of(cache, ("fake:blocks.1",), ("grid", "mean"))
    loaded = stream(fresh, PngSource(N), rows)
    batches = list(loaded)
    assert [batch.rows for batch in batches] == [rows[:5], rows[5:]]
    for a, b in zip(fed(features, cache.table.rows_of("train+test")[rows]), streamed(loaded), strict=True):
        assert torch.equal(a, b)


def test_bad_images_are_told_and_left_out(tmp_path):
    _, fresh = origins_of(make_fake_cache(tmp_path / "cache"))
    broken = dict.fromkeys(range(5, 10), b"no image") | {11: b""}  # the second batch has no good image
    found = stream(fresh, PngSource(N, broken))
    batches = list(found)
    assert [row for batch in batches for row in batch.rows] == [row for row in range(N) if row not in broken]
    assert [status.row for batch in batches for status in batch.statuses] == list(range(N))
    assert batches[1].rows == []
    assert batches[1].features == ()
    assert found.bad == dict.fromkeys(range(5, 10), "not an image of a known format") | {11: "empty file"}


def test_two_backbones_read_each_image_once_and_not_far_ahead(tmp_path):
    _, fresh = origins_of(make_fake_cache(tmp_path / "cache", names=("fake", "fake1")))
    source, loaded = PngSource(N), []
    found = stream(fresh, source, load=loader(loaded))
    iterator = iter(found)
    next(iterator)
    assert len(source.reads) <= BATCH + 2 * BATCH  # the batch in hand, and two batches ahead
    list(iterator)
    assert set(source.reads.values()) == {1}
    assert sorted(loaded) == ["fake", "fake1"]


def test_other_weights_are_refused_with_what_differs(tmp_path):
    _, fresh = origins_of(make_fake_cache(tmp_path / "cache"))
    with pytest.raises(LofftaError, match=r"not the backbone that made the run's features:\n    weights: 0+ -> 0+1"):
        stream(fresh, PngSource(N), load=lambda _: FakeBackbone(seed=1))


def test_what_does_not_fit_the_storage_type_names_tap_and_image(tmp_path):
    _, fresh = origins_of(make_fake_cache(tmp_path / "cache"), kinds=("grid",))
    backbone = FakeBackbone()
    backbone.matrices["blocks.1"] = backbone.matrices["blocks.1"] * 1e4
    with pytest.raises(LofftaError, match=r"tap blocks.1 reaches .* over float16's 65504 for image 0000.png"):
        list(stream(fresh, PngSource(N), load=lambda _: backbone))


def test_a_batch_that_does_not_fit_the_memory_is_halved(tmp_path, capsys):
    cache = make_fake_cache(tmp_path / "cache")
    features, fresh = origins_of(cache)

    def full(backbone):
        if backbone.batches[-1] > 2:
            raise torch.OutOfMemoryError("no room")

    halved = streamed(stream(fresh, PngSource(N), load=lambda _: FakeBackbone(before=full)))
    assert "memory ran out; 2 images at once" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(fed(features, cache.table.rows_of("train+test")), halved, strict=True))


def test_an_early_end_leaves_no_threads_at_work(tmp_path):
    source = PngSource(N)
    stretches = read_pixels(source, source.listing(), [FakeBackbone().geometry], range(N), 4)
    next(stretches)
    stretches.close()
    before = sum(source.reads.values())
    assert before < N
    assert sum(source.reads.values()) == before
