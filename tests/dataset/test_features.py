"""What `--features` resolves to, and which rows can be used: against caches whose every array is known."""

import shlex

import numpy as np
import pytest
import torch

from loffta.dataset.command_lines import extract_command
from loffta.dataset.features import (
    choose_features,
    n_bad,
    resolved_choices,
    usable_rows,
)
from loffta.errors import LofftaError, UsageError
from loffta.store.cache import Cache
from loffta.tokens import FeatureSpec
from tests.caches import FakeStore, make_cache, make_table, write_units

N = 20  # units of 8, 8 and 4
SPLITS = ["train"] * 12 + ["val"] * 4 + ["test"] * 4


def grid(side, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(N, side, side, dim)).astype(np.float32)


def net(**changes):
    grids = {"s.0": grid(4, 3), "s.1": grid(2, 5, 1), "s.2": grid(2, 5, 2)}
    return FakeStore("net", grids, known=("s.3",), **changes)


def make(tmp_path, *stores, **options):
    return make_cache(tmp_path / "a cache", make_table(np.arange(N) % 2, SPLITS), stores, **options)


def taps_of(features):
    return [feature.spec.taps for feature in features]


@pytest.mark.parametrize("by", ["store", "backbone"])
@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        ("", [("s.2",)]),
        (":last", [("s.2",)]),
        (":all", [("s.0",), ("s.1", "s.2")]),
        (":s.2,s.0", [("s.0",), ("s.2",)]),
        (":s.1", [("s.1",)]),
        (":last4, s.1", [("s.0",), ("s.1", "s.2")]),
    ],
)
def test_store_and_taps(tmp_path, by, taps, expected):
    cache = make(tmp_path, net())
    name = cache.stores()[0].name if by == "store" else "net"
    features = choose_features(cache, [name + taps], ("grid",), default_taps="last")
    assert taps_of(features) == expected
    again = choose_features(cache, resolved_choices(features), ("grid",), default_taps="all")
    assert [feature.spec for feature in again] == [feature.spec for feature in features]


def test_no_choice_is_all_stores(tmp_path):
    cache = make(tmp_path, net(), FakeStore("other", {"x": grid(1, 2)}))
    features = choose_features(cache, [], ("grid",), default_taps="last")
    assert [(f.spec.backbone, f.spec.taps) for f in features] == [("net", ("s.2",)), ("other", ("x",))]


def test_specs(tmp_path):
    cache = make(tmp_path, net(image_px=48, weights="random:3"))
    label = "net [random:3 weights]"
    assert [f.spec for f in choose_features(cache, [], ("grid",), default_taps="all")] == [
        FeatureSpec(label, ("s.0",), "grid", (4, 4, 3), 48),
        FeatureSpec(label, ("s.1", "s.2"), "grid", (2, 2, 5), 48),
    ]
    assert [f.spec for f in choose_features(cache, [], ("mean",), default_taps="all")] == [
        FeatureSpec(label, ("s.0",), "mean", (3,), 48),
        FeatureSpec(label, ("s.1", "s.2"), "mean", (5,), 48),
    ]


def test_two_stores_of_one_backbone(tmp_path):
    cache = make(tmp_path, net(), net(image_px=64))
    first, second = cache.stores()
    with pytest.raises(UsageError, match="2 stores hold features of net") as caught:
        choose_features(cache, ["net"], ("grid",), default_taps="all")
    assert first.name in caught.value.remedy
    assert second.name in caught.value.remedy
    both = choose_features(cache, [], ("grid",), default_taps="last")
    assert [f.spec.backbone for f in both] == [f"net ({first.hash})", f"net ({second.hash})"]
    (one,) = choose_features(cache, [second.name], ("grid",), default_taps="last")
    assert one.spec.backbone == "net"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nett", r"unknown store 'nett'(.|\n)*did you mean net"),
        ("net:s.11", r"unknown tap 's.11'(.|\n)*did you mean s.1"),
        ("net:lst", r"unknown tap 'lst'(.|\n)*did you mean last"),
    ],
)
def test_unknown_names_have_neighbours(tmp_path, choice, message):
    with pytest.raises(UsageError, match=message):
        choose_features(make(tmp_path, net()), [choice], ("grid",), default_taps="all")


def test_tap_that_is_known_but_not_stored(tmp_path):
    cache = make(tmp_path, net())
    with pytest.raises(LofftaError, match=r"tap s.3 of net-\w+ is not in the cache as 'grid'") as caught:
        choose_features(cache, ["net:s.3"], ("grid",), default_taps="all")
    assert caught.value.exit_code == 1
    assert caught.value.remedy.splitlines()[1].strip() == (
        f"loffta extract folder:pictures --cache '{cache.paths.root}' --backbone net --weights hub --taps s.3 "
        "--image-px 32 --kinds grid --dtype float16"
    )


def inner_net(*taps, known=()):
    return FakeStore("vit", {tap: grid(2, 5, i) for i, tap in enumerate(taps)}, known=known)


def test_inner_taps_by_name_and_set(tmp_path):
    stored = ("blocks.0.norm2", "blocks.0", "blocks.1.norm2", "blocks.1", "norm")
    cache = make(tmp_path, inner_net(*stored))
    expected = {
        "all": ("blocks.0", "blocks.1"),
        "last": ("blocks.1",),
        "norm2": ("blocks.0.norm2", "blocks.1.norm2"),
        "alf": ("blocks.1.norm2", "norm"),
        "norm,blocks.0.norm2": ("blocks.0.norm2", "norm"),
        "every": stored,
    }
    for request, taps in expected.items():
        assert taps_of(choose_features(cache, [f"vit:{request}"], ("mean",), default_taps="all")) == [taps]


def test_a_command_names_a_tap_once_that_is_there_as_two_kinds(tmp_path):
    net = FakeStore("vit", {"blocks.0": grid(2, 5, 0), "blocks.1": grid(2, 5, 1)}, missing=(0,))
    cache = make(tmp_path, net)
    features = choose_features(cache, [], ("grid", "mean"), default_taps="all")
    with pytest.raises(LofftaError, match=r"--taps blocks\.0,blocks\.1 "):
        usable_rows(cache, features, "train")


def test_store_of_inner_taps_alone(tmp_path):
    """What `all` and `last` mean does not change with what is stored; the message names what can be used."""
    cache = make(tmp_path, inner_net("blocks.0.norm2", "blocks.1.norm2", known=("norm",)))
    for request, taps in {"norm2": ("blocks.0.norm2", "blocks.1.norm2"), "blocks.1.norm2": ("blocks.1.norm2",)}.items():
        assert taps_of(choose_features(cache, [f"vit:{request}"], ("grid",), default_taps="all")) == [taps]
    for request in ("last", "all"):
        with pytest.raises(UsageError, match=f"the set '{request}' is empty here") as caught:
            choose_features(cache, ["vit"], ("grid",), default_taps=request)
        assert caught.value.remedy == "use norm2 or every or names such as blocks.1.norm2"


def test_alf_needs_its_last_layer(tmp_path):
    cache = make(tmp_path, inner_net("blocks.0.norm2", "blocks.1.norm2", "norm", known=("head",)))
    with pytest.raises(LofftaError, match=r"tap head of vit-\w+ is not in the cache(.|\n)*--taps head "):
        choose_features(cache, ["vit:alf"], ("grid",), default_taps="all")


def test_kind_that_is_not_stored_is_in_the_command(tmp_path):
    cache = make(tmp_path, net(kinds=("mean",)))
    assert taps_of(choose_features(cache, ["net:all"], ("mean",), default_taps="all")) == [("s.0",), ("s.1", "s.2")]
    with pytest.raises(LofftaError, match=r"--taps s\.1 --image-px 32 --kinds mean,grid --dtype float16"):
        choose_features(cache, ["net:s.1"], ("grid",), default_taps="all")
    with pytest.raises(LofftaError, match=r"--taps s\.3 --image-px 32 --kinds mean --dtype float16"):
        choose_features(cache, ["net:s.3"], ("mean",), default_taps="all")


def test_empty_cache(tmp_path):
    with pytest.raises(LofftaError, match="run `loffta extract` first"):
        choose_features(make(tmp_path), [], ("grid",), default_taps="all")


def test_mean_is_the_stored_one_or_the_grids(tmp_path):
    means = {tap: np.full((N, dim), 7.0, np.float32) for tap, dim in (("s.0", 3), ("s.1", 5), ("s.2", 5))}
    (stored, _) = choose_features(
        make(tmp_path, net(kinds=("grid", "mean"), means=means)), [], ("mean",), default_taps="all"
    )
    assert stored.array.kind == "mean"
    assert torch.equal(stored.finish(torch.full((2, 1, 3), 7.0)), torch.full((2, 1, 3), 7.0))
    (pooled, _) = choose_features(make(tmp_path / "b", net()), [], ("mean",), default_taps="all")
    assert pooled.array.kind == "grid"
    raw = torch.randn(2, 1, 4, 4, 3)
    torch.testing.assert_close(pooled.finish(raw), raw.sum(dim=(2, 3)) / 16)


def test_a_mean_stored_later_moves_no_column(tmp_path):
    """The middle one of three taps gets a mean of its own: the order of a trained head's columns must stay."""
    grids = {tap: grid(2, 5, i) for i, tap in enumerate(("s.0", "s.1", "s.2"))}
    cache = make(tmp_path, FakeStore("net", grids))
    (before,) = choose_features(cache, ["net:all"], ("mean",), default_taps="all")
    store = cache.stores()[0]
    (array,) = cache.add_arrays(store, "mean", [store.info.taps[1]], "float16")
    write_units(cache, array, grids["s.1"].mean(axis=(1, 2))[:, None])
    after = choose_features(cache, resolved_choices([before]), ("mean",), default_taps="all")
    assert [tap for feature in after for tap in feature.spec.taps] == list(before.spec.taps)
    assert [feature.array.kind for feature in after] == ["grid", "mean", "grid"]


def test_unfinished_cache_names_counts_and_command(tmp_path):
    cache = make(tmp_path, net(missing=(1,)))
    features = choose_features(cache, [], ("grid",), default_taps="all")
    with pytest.raises(LofftaError, match=r"4 of the 12 images of split 'train' have no features yet") as caught:
        usable_rows(cache, features, "train")
    assert caught.value.exit_code == 1
    assert "--backbone net --weights hub --taps s.0,s.1,s.2 --image-px 32" in caught.value.remedy
    assert "--partial" in caught.value.remedy
    assert usable_rows(cache, features, "train", partial=True).tolist() == list(range(8))
    assert usable_rows(cache, features, "test").tolist() == [16, 17, 18, 19]
    with pytest.raises(LofftaError, match="of split 'val' has features, but 8 of train have, 4 of test have"):
        usable_rows(cache, features, "val", partial=True)


def test_all_features_must_be_there(tmp_path):
    cache = make(tmp_path, net(), FakeStore("other", {"x": grid(1, 2)}, missing=(0,)))
    features = choose_features(cache, [], ("grid",), default_taps="all")
    assert usable_rows(cache, features, "train+val", partial=True).tolist() == list(range(8, 16))
    assert usable_rows(cache, features[:2], "train+val").tolist() == list(range(16))


def test_quarantined_rows_are_left_out(tmp_path):
    cache = make(tmp_path, net(), bad=(0, 5, 17))
    features = choose_features(cache, [], ("grid",), default_taps="all")
    assert usable_rows(cache, features, "train").tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert (n_bad(cache, features, "train"), n_bad(cache, features, "test+train")) == (2, 3)


def test_store_of_a_smaller_image_set(tmp_path):
    """After growth, until `extract` comes by, the new rows are missing, not out of range."""
    cache = make(tmp_path, net())
    grown = make_table(np.arange(N + 3) % 2, [*SPLITS, "test", "test", "test"])
    cache = Cache.create(cache.paths.root, grown, unit_images=None, thumb_px=8)
    features = choose_features(cache, [], ("grid",), default_taps="all")
    with pytest.raises(LofftaError, match="3 of the 7 images of split 'test'"):
        usable_rows(cache, features, "test")
    assert usable_rows(cache, features, "test", partial=True).tolist() == [16, 17, 18, 19]


def test_unknown_split(tmp_path):
    cache = make(tmp_path, net())
    features = choose_features(cache, [], ("grid",), default_taps="all")
    with pytest.raises(UsageError, match=r"unknown split 'tset'(.|\n)*did you mean test"):
        usable_rows(cache, features, "train+tset")


VIEW = {"kind": "crop-flip", "seed": 7, "index": 1, "area": [0.25, 1.0], "aspect": [0.75, 1.33]}


def test_views_are_taken_by_their_own_name_alone(tmp_path):
    view = FakeStore("net", {"x": grid(1, 2)}, view=VIEW)
    cache = make(tmp_path, FakeStore("net", {"x": grid(2, 2)}), view)
    plain, seen = sorted(cache.stores(), key=lambda store: store.info.is_view)
    assert (plain.info.label, seen.info.label) == ("net", "net [view 1]")
    for choices in ([], ["net"], [plain.name]):
        (feature,) = choose_features(cache, choices, ("grid",), default_taps="all")
        assert feature.store.name == plain.name
    both = choose_features(cache, [plain.name, seen.name], ("grid",), default_taps="all")
    assert [feature.spec.backbone for feature in both] == ["net", "net [view 1]"]


def test_the_command_says_all_that_made_the_store(tmp_path):
    asked = {"resize": "crop", "interpolation": "bilinear", "pool": [2, 3], "precision": "bf16"}
    cache = make(tmp_path, FakeStore("net", {"x": grid(1, 2)}, view=VIEW, request=asked))
    words = shlex.split(extract_command(cache, cache.stores()[0], ["x"]))
    options = dict(zip(words[3::2], words[4::2], strict=True))
    config = {k: options[f"--{k}"] for k in ("resize", "interpolation", "pool", "views", "view-seed", "precision")}
    assert config == {
        "resize": "crop",
        "interpolation": "bilinear",
        "pool": "2x3",
        "views": "2",
        "view-seed": "7",
        "precision": "bf16",
    }
