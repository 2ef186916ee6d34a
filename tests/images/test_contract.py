"""What every kind of image set promises, over all of SOURCES: the same listing twice, readable keys, features."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from loffta.extraction.extract import extract
from loffta.images.files import key_fault
from loffta.images.rgb import to_rgb
from loffta.images.sources import SOURCES, ImageSource, open_source
from loffta.images.targets import decode_target
from loffta.look import OLD
from loffta.machine.process import StopFlag
from loffta.store.asked import limited_rows
from loffta.store.cache import Cache
from loffta.store.table import ImageTable
from loffta.targets import TARGET_KINDS
from tests.fakes import FakeBackbone, fake_config
from tests.imagesets import BUILDERS, MORE, decode


def pixels_of(data):
    """[H, W, 3] as decoded."""
    return np.asarray(to_rgb(decode(data), OLD))


def test_every_kind_has_a_builder():
    assert set(BUILDERS) == set(SOURCES)


@pytest.fixture(params=[*SOURCES, *MORE])
def built(request, tmp_path):
    build, kind = {**BUILDERS, **MORE}[request.param]
    (tmp_path / "set").mkdir()
    return build(tmp_path / "set"), kind


def test_a_listing_is_the_same_each_time_and_opens_no_image(built, monkeypatch):
    spec, kind = built
    source = open_source(spec)
    assert isinstance(source, ImageSource)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("an image was opened"))
    table = source.listing()
    again = open_source(spec).listing()
    assert isinstance(table, ImageTable)
    assert (table.digest, table.source) == (again.digest, again.source)
    assert open_source(table.source).listing().digest == table.digest  # the source's own name for itself leads back
    assert table.label_kind == kind
    assert len(set(table.keys)) == len(table) > 0
    assert [key_fault(key) for key in table.keys] == [None] * len(table)
    assert set(table.splits) <= {"train", "val", "test"}
    assert table.labels.max(initial=-1) < len(table.classes)


def test_every_key_can_be_read_and_targets_too(built):
    source = open_source(built[0])
    table = source.listing()
    for key in table.keys[:20]:
        assert pixels_of(source.read(key)).shape[2] == 3
        assert source.read(key) == source.read(key)
    assert set(table.targets) <= set(TARGET_KINDS)
    for kind, paths in table.targets.items():
        for key, path in zip(table.keys, paths, strict=True):
            if path is not None:
                shape = pixels_of(source.read(key)).shape[:2]
                classes = table.target_classes.get(kind, ())
                found = decode_target(kind, source.read(path), classes=classes, size=shape)
                assert (found.kind, found.height, found.width) == (kind, *shape)


@pytest.mark.parametrize("key", ["../secret.png", "/etc/passwd", "a/../../secret.png", "train/-1", "nothing/here", ""])
def test_a_key_that_was_not_listed_gives_no_bytes(built, key):
    source = open_source(built[0])
    source.listing()
    with pytest.raises(OSError):  # noqa: PT011  each has its own words, tested where it is
        source.read(key)


def test_its_features_land_in_a_cache(built, tmp_path):
    """End to end; the bytes that were decoded are the source's, and a second run does nothing."""
    spec, kind = built
    source = open_source(spec)
    listing = source.listing()
    limit = min(len(listing), 20)
    rows = limited_rows(listing.splits, limit)
    config = fake_config(tmp_path / "cache", limit=limit)
    report = extract(config, source, lambda _: FakeBackbone(), StopFlag())
    assert (report.images, report.bad) == (limit, 0)
    cache = Cache.open(tmp_path / "cache")
    assert cache.table.digest == source.listing().digest
    assert cache.table.label_kind == kind
    done = [pq.read_table(path) for path in sorted((tmp_path / "cache/done/targets/thumb").iterdir())]
    digests = [digest for unit in done for digest in unit["blake2b"].to_pylist()]
    expected = [
        hashlib.blake2b(source.read(key), digest_size=16).hexdigest() for key in (cache.table.keys[row] for row in rows)
    ]
    assert digests == expected
    again = extract(config, open_source(spec), lambda _: pytest.fail("a model was loaded"), StopFlag())
    assert again.units == 0
