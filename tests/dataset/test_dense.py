"""Which dense task a cache is for, which rows have a target, and what stands in the way."""

import numpy as np
import pytest

from loffta.config import TrainConfig
from loffta.dataset.dense import choose_any_task, learnable, open_targets, refuse_dense, rows_with_targets
from loffta.dataset.features import choose_features
from loffta.dataset.splits import choose_splits
from loffta.errors import LofftaError, UsageError
from tests.caches import FakeStore, make_cache, make_table
from tests.dense import write_boxes, write_maps, write_native
from tests.fakes import random_target

N = 16  # two units


@pytest.fixture
def make(tmp_path):
    def make(*kinds, stores=({},), geometries=({"resize": "squash"},), native_units=None, missing=()):
        grids = np.zeros((N, 2, 2, 3), np.float32)
        made = [FakeStore(f"net{i}", {"a": grids}, **store) for i, store in enumerate(stores)]
        table = make_table(np.arange(N) % 2, ["train"] * 10 + ["test"] * 6)
        cache = make_cache(tmp_path / "cache", table, made)
        for kind in kinds:
            natives = [None if i in missing else random_target(kind, i) for i in range(N)]
            write_native(cache, kind, natives, units=native_units)
            for geometry in geometries:
                if kind == "boxes":
                    write_boxes(cache, [one and one.boxes for one in natives], geometry)
                else:
                    maps = [None if one is None else np.zeros((4, 4)) for one in natives]
                    write_maps(cache, kind, maps, geometry)
        return cache

    return make


def opened(cache, task="segmentation", **options):
    features = choose_features(cache, (), ("grid",), default_taps="all")
    return open_targets(cache, task, "deap", features, **{"training": True, **options})


@pytest.mark.parametrize(
    ("kinds", "head", "asked", "task"),
    [
        (("mask",), "deap", "auto", "segmentation"),
        (("depth",), "dense-linear", "auto", "depth"),
        (("boxes",), "deap", "auto", "detection"),
        (("mask", "instances"), "deap", "boundaries", "boundaries"),
        (("instances",), "deap", "instances", "instances"),
        (("mask",), "linear", "auto", "classification"),
        ((), "linear", "classification", "classification"),
    ],
)
def test_the_head_and_the_targets_choose(make, kinds, head, asked, task):
    assert choose_any_task(make(*kinds), head, asked) == task


@pytest.mark.parametrize(
    ("kinds", "head", "asked", "message"),
    [
        (("mask", "depth"), "deap", "auto", "targets for segmentation, depth(.|\n)*--task segmentation"),
        (("instances",), "deap", "auto", "targets for boundaries, instances"),
        ((), "deap", "auto", "does not have any targets(.|\n)*--targets mask"),
        (("mask",), "deap", "depth", "does not have the targets of depth, 'depth'(.|\n)*--targets depth"),
        (("mask",), "deap", "classification", "gives maps, and classification is of whole images"),
        (("mask",), "linear", "segmentation", "sees an image as a whole(.|\n)*deap"),
        (("mask",), "deap", "segmantation", "gives maps, and segmantation is of whole"),
    ],
)
def test_what_does_not_fit_is_refused(make, kinds, head, asked, message):
    with pytest.raises(UsageError, match=message):
        choose_any_task(make(*kinds), head, asked)


def test_rows_without_a_target_are_left_out(make):
    cache = make("mask", missing=(1, 12))
    rows = rows_with_targets(opened(cache), cache, np.arange(N), "train")
    assert rows.tolist() == [i for i in range(N) if i not in (1, 12)]
    assert learnable(cache, "segmentation").tolist() == [i not in (1, 12) for i in range(N)]
    assert learnable(cache, "classification") is None
    config = TrainConfig(cache=cache.paths.root, head="deap", task="segmentation")
    there = learnable(cache, "segmentation") & (np.arange(N) < 10)  # none of the test split
    with pytest.raises(UsageError, match=r"has no target in split 'test'(.|\n)*with targets(.|\n)*known: train\)"):
        choose_splits(config, cache.table, "here", there)
    with pytest.raises(LofftaError, match=r"no image of split 'x' has a target 'mask'(.|\n)*no such file"):
        rows_with_targets(opened(cache), cache, np.array([1, 12]), "x")


def test_unfinished_targets_are_an_error_unless_what_is_there_is_taken(make):
    cache = make("mask", native_units=(0,))
    targets = opened(cache)
    with pytest.raises(LofftaError, match=r"not finished: 8 of the 16 images(.|\n)*--targets mask(.|\n)*--partial"):
        rows_with_targets(targets, cache, np.arange(N), "train")
    assert rows_with_targets(targets, cache, np.arange(N), "train", partial=True).tolist() == list(range(8))


@pytest.mark.parametrize(("kind", "task"), [("mask", "segmentation"), ("boxes", "detection")])
def test_targets_are_of_the_features_geometry(make, kind, task):
    cropped = {"request": {"resize": "crop"}}
    cache = make(kind, stores=({}, cropped))
    assert opened(cache, task).native.kind == kind, "both were squashed"
    view = {"view": {"index": 0, "seed": 0}}
    other = make_view_cache(cache, view)
    with pytest.raises(LofftaError, match=r"has no .* for the squares of store|has no boxes"):
        open_targets(other, task, "deap", choose_views(other), training=True)
    assert open_targets(other, task, "deap", choose_views(other), training=False).maps is None


def make_view_cache(cache, view):
    store = cache.create_store(FakeStore("viewed", {"a": np.zeros((N, 2, 2, 3))}, **view).info)
    cache.add_arrays(store, "grid", list(store.info.taps), "float16")
    return cache


def choose_views(cache):
    name = next(store.name for store in cache.stores() if store.info.is_view)
    return choose_features(cache, [name], ("grid",), default_taps="all")


def test_stores_that_show_other_parts_cannot_share_a_target(make):
    view = {"view": {"index": 0, "seed": 0}}
    cache = make_view_cache(make("mask", geometries=({"resize": "squash"}, view)), view)
    both = [*choose_features(cache, (), ("grid",), default_taps="all"), *choose_views(cache)]
    with pytest.raises(UsageError, match="show other parts of an image: no target fits both"):
        open_targets(cache, "segmentation", "deap", both, training=True)


def test_thumbnails_are_the_last_input_of_heads_that_are_guided(make):
    cache = make("mask")
    features = choose_features(cache, (), ("grid",), default_taps="all")
    assert len(open_targets(cache, "segmentation", "deap", features, training=True).inputs) == 1
    found = open_targets(cache, "segmentation", "featup", features, training=True).inputs
    assert [one.spec.kind for one in found] == ["grid", "thumb"]
    assert found[1].spec.shape == (8, 8, 3)


def test_the_digest_is_of_the_targets_bytes(make):
    targets = opened(make("mask"))
    assert targets.digest(np.arange(8)) == targets.digest(np.arange(8))
    assert targets.digest(np.arange(8)) != targets.digest(np.arange(9))
    refuse_dense("classification", "report", "run")
    with pytest.raises(UsageError, match="its heads give maps, which `loffta report` cannot use yet"):
        refuse_dense("depth", "report", "run")
