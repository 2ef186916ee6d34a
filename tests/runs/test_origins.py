"""stores.json: Features that need no cache any more, the same to the last bit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from loffta.dataset.dense import image_feature
from loffta.dataset.features import choose_features
from loffta.errors import LofftaError
from loffta.look import OLD, Look
from loffta.runs.origins import Origins, Thumbs, read_origins, write_origins
from loffta.store.reader import ArrayReader
from tests.caches import FakeStore, make_cache, make_table, separable


@pytest.fixture
def cache(tmp_path):
    labels, first = separable(16)
    _, second = separable(16, shape=(3, 3), dim=4, seed=1)
    _, third = separable(16, seed=2)
    table = make_table(labels, ["train"] * 16)
    grids = {"a.0": first, "a.1": second, "a.2": third}
    stores = [FakeStore("plain", grids, kinds=("grid", "mean")), FakeStore("small", grids, dtype="int8")]
    return make_cache(tmp_path / "cache", table, stores)


CASES = [
    (("plain:a.0,a.2", "small:a.1"), ("grid",)),
    (("plain:a.2",), ("mean",)),
    (("small:all",), ("mean",)),  # pooled from int8 grids
    (("small:a.2", "plain:all"), ("grid", "mean")),
]


@pytest.mark.parametrize(("choices", "kinds"), CASES)
def test_features_outlive_their_cache(cache, tmp_path, choices, kinds):
    features = choose_features(cache, choices, kinds, default_taps="all")
    raw = [ArrayReader(f.array.paths).read(np.arange(8)) for f in features]
    chosen = [torch.from_numpy(values[:, f.positions]) for f, values in zip(features, raw, strict=True)]
    expected = [
        f.finish(torch.from_numpy(values[:, f.raw_taps] if f.raw_taps else values))
        for f, values in zip(features, raw, strict=True)
    ]
    write_origins(tmp_path / "stores.json", features, cache.table.classes)
    shutil.rmtree(cache.paths.root)
    origins = read_origins(tmp_path / "stores.json")
    assert origins.classes == cache.table.classes
    assert [f.spec for f in origins.features] == [f.spec for f in features]
    assert [f.store.name for f in origins.features] == [f.store.name for f in features]
    assert [f.store.info for f in origins.features] == [f.store.info for f in features]
    for fresh, values, right in zip(origins.features, chosen, expected, strict=True):
        assert fresh.array.taps == fresh.spec.taps
        assert fresh.array.layout.item_shape == tuple(values.shape[1:])
        assert fresh.array.layout.dtype.name == str(values.dtype).removeprefix("torch.")
        assert torch.equal(fresh.finish(values), right)


def test_again_it_is_the_same_file(cache):
    features = choose_features(cache, ("small:all",), ("grid",), default_taps="all")
    data = Origins.of(features, cache.table.classes).to_json()
    assert Origins.from_json(data).to_json() == data
    assert Origins.of(Origins.from_json(data).features, cache.table.classes).to_json() == data


@pytest.mark.parametrize("look", [Look(), Look("#102030", "0..200"), OLD])
def test_thumbnails_of_heads_that_are_guided(cache, look):
    """In runs of old, and of other heads, there are none."""
    features = choose_features(cache, ("small:all",), ("grid",), default_taps="all")
    plain = json.loads(Origins.of(features, ()).to_json())
    data = Origins.of(features, (), Thumbs(24, look)).to_json()
    assert {name: of for name, of in json.loads(data).items() if name != "thumbs"} == plain
    assert Origins.from_json(json.dumps(plain).encode()).thumbs is None
    again = Origins.from_json(data)
    assert again.to_json() == data
    *grids, thumbs = again.inputs
    assert [grid.spec for grid in grids] == [feature.spec for feature in features]
    assert thumbs.spec == image_feature(replace(cache, thumb_px=24).thumbs(), features[0].store).spec
    assert thumbs.array.look == look
    pixels = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    assert torch.equal(thumbs.finish(pixels), pixels[:, None])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda document: document.update(format=2), "format 2 is newer than this loffta knows"),
        (lambda document: document.pop("classes"), r"\('classes' is .*: field required"),
        (lambda document: document.update(stores=[]), r"\('stores' is \[\]: input should be a valid dict"),
        (lambda document: document["features"][0]["spec"].update(shape=["3"]), r"features.0.spec.shape.0' is '3'"),
        (lambda document: document.update(thumbs={"px": 0}), r"'thumbs.px' is 0: input should be greater"),
        (lambda document: document.update(thumbs={"px": 8, "range": "9..1"}), "ValueError: it must be auto, clip, or"),
        (lambda document: document["features"][0].update(scales=None), "an int8 array has scales, and no other"),
        (lambda document: document["features"][0].update(dtype="float16"), "an int8 array has scales, and no other"),
        (lambda document: document["features"][0].update(store="none"), "KeyError: 'none'"),
        (lambda document: document["features"][0]["scales"].update(scale="AAAA"), "ValueError"),
    ],
)
def test_files_that_cannot_be_read(cache, tmp_path, change, what):
    document = json.loads(Origins.of(choose_features(cache, ("small",), ("grid",), default_taps="all"), ()).to_json())
    change(document)
    path = tmp_path / "stores.json"
    path.write_text(json.dumps(document))
    with pytest.raises(LofftaError, match=what) as caught:
        read_origins(path)
    assert caught.value.where == str(path)
    assert "delete the file while the run's cache is still there" in caught.value.remedy
