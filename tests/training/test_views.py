"""`--views`: which stores are views of which, what is refused, and that targets come in the view of their features."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loffta.dataset.features import choose_features
from loffta.dataset.views import with_views
from loffta.errors import LofftaError, UsageError
from loffta.runs.run import RunPaths
from loffta.store.targets import geometry_of
from loffta.targets import NativeTarget
from tests.caches import FakeStore, make_cache, make_table
from tests.dense import write_boxes, write_maps, write_native
from tests.training.denseruns import N_TRAIN, PX, SIDE, boxes_of, enlarged, go, one_map, scenes
from tests.training.test_dense import session_of

N = N_TRAIN + 4
VIEWS = ({"index": 0, "seed": 0}, {"index": 1, "seed": 0})


def store_of(cells, backbone="net", view=None, taps=("a.0",), **options):
    grids = np.eye(6, dtype=np.float32)[cells]
    return FakeStore(backbone, dict.fromkeys(taps, grids), view=view, **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """View 0 is the mirror image, view 1 upside down: what a target should be then is clear."""
    cells = scenes(N)
    shown = {"whole": cells, "mirrored": cells[:, :, ::-1], "upside down": cells[:, ::-1]}
    table = make_table(np.arange(N) % 2, ["train"] * N_TRAIN + ["test"] * 4)
    stores = [store_of(one, view=view) for one, view in zip(shown.values(), (None, *VIEWS), strict=True)]
    cache = make_cache(tmp_path_factory.mktemp("views") / "cache", table, stores)
    write_native(cache, "mask", [native("mask", map=one_map("mask", enlarged(one, 24, 20), 0)) for one in cells])
    write_native(cache, "boxes", [native("boxes", boxes=boxes_of(one, 20, 24)) for one in cells])
    for store in cache.stores():
        one = shown[{None: "whole", 0: "mirrored", 1: "upside down"}[(store.info.recipe["view"] or {}).get("index")]]
        geometry = geometry_of(store.info.recipe)
        write_maps(cache, "mask", enlarged(one, PX, PX).astype(np.uint8), geometry)
        write_boxes(cache, [boxes_of(of_image, 1, 1) for of_image in one], geometry)
    return cache


def native(kind, **what):
    return NativeTarget(kind, 24, 20, **what)


def whole_features(cache, choices=()):
    return choose_features(cache, choices, ("grid",), default_taps="all")


def test_all_views_of_a_store_are_found(cache):
    (feature,) = with_views(cache, whole_features(cache), ("grid",))
    assert [one.store.info.recipe["view"] for one in feature.views] == list(VIEWS)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_targets_come_in_the_view_of_their_features(cache, tmp_path, task):
    session, recipe = session_of(cache, tmp_path / "run", "dense-linear", task, views=True)
    seen = set()
    with session.feed(session.supply.rows("train"), recipe) as feed:
        learner = session.objective.begin(feed.rows, [session.member(recipe, 0)])
        for batch in feed.epoch(0):
            targets, cells = learner.targets(batch), batch.features[0][:, 0].argmax(-1).numpy()
            seen |= {*batch.views.tolist()}
            if task == "segmentation":
                assert np.array_equal(targets.maps.numpy(), enlarged(cells, PX, PX))
            else:
                expected = np.concatenate([boxes_of(one, 1, 1).corners for one in cells])
                assert targets.boxes.corners.numpy() == pytest.approx(expected, abs=1e-6)
                assert targets.boxes.image.tolist() == np.repeat(np.arange(len(cells)), 2).tolist()
                assert targets.box_classes[targets.boxes.number].tolist() == [0, 1] * len(cells)
    assert seen == {0, 1, 2}


def test_a_training_with_views_is_measured_on_whole_images(cache, tmp_path):
    results = go(cache, tmp_path / "run", "dense-linear", views=True, seeds=2)
    assert [entry["taps"] for entry in results["features"]] == [["a.0"]]
    assert results["n"] == 4
    go(cache, tmp_path / "again", "dense-linear", views=True, feed="stream")
    go(cache, tmp_path / "plain", "dense-linear")
    run, again, plain = (load_file(RunPaths(tmp_path / name).head(0)) for name in ("run", "again", "plain"))
    assert torch.equal(run["classify.weight"], again["classify.weight"])
    assert not torch.equal(run["classify.weight"], plain["classify.weight"])


@pytest.mark.parametrize(
    ("stores", "error", "message"),
    [
        ([{}], UsageError, "has no views"),
        ([{}, {"backbone": "b", "view": VIEWS[0]}, {"backbone": "b"}], UsageError, "store net-.* has no views"),
        (
            [{}, {"view": VIEWS[0]}, {"backbone": "b"}, {"backbone": "b", "view": VIEWS[1]}],
            UsageError,
            "no view in common",
        ),
        ([{"dtype": "int8"}, {"dtype": "int8", "view": VIEWS[0]}], UsageError, "int8 features cannot be mixed"),
        ([{"taps": ("a.0", "a.1")}, {"view": VIEWS[0]}], LofftaError, "a.1 of net.* is not in the cache"),
    ],
)
def test_what_is_no_set_of_views(tmp_path, stores, error, message):
    cells = np.zeros((4, SIDE, SIDE), np.int64)
    table = make_table(np.zeros(4), ["train"] * 4)
    made = [store_of(cells, **{"known": ("a.1",), **store} if "taps" not in store else store) for store in stores]
    cache = make_cache(tmp_path / "cache", table, made)
    with pytest.raises(error, match=message):
        with_views(cache, whole_features(cache), ("grid",))


def test_views_of_other_backbones_show_the_same(tmp_path):
    """Whatever the order of the stores' names."""
    cells = scenes(4)
    stores = [
        store_of(cells, backbone, view=view, taps=("a.0",)) for backbone in ("b", "net") for view in (None, *VIEWS)
    ]
    cache = make_cache(tmp_path / "cache", make_table(np.zeros(4), ["train"] * 4), stores)
    one, other = with_views(cache, whole_features(cache), ("grid",))
    assert [a.store.info.recipe["view"] for a in one.views] == [b.store.info.recipe["view"] for b in other.views]
