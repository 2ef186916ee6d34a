"""Folds and draws: each is its separate run to the last bit, on one load of the features; what cannot be is refused."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from loffta.dataset.splits import OUT_OF_FOLD
from loffta.errors import LofftaError, Stopped, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.feed import sources
from loffta.feed.batches import Feed
from loffta.files.tensor_file import read_tensors
from loffta.machine.process import StopFlag
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.tables import read_runs
from loffta.runs.run import RunPaths, read_predictions
from loffta.store.cache import Cache
from loffta.tasks.paired import interval_of
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable
from tests.training.runs import SMALL, files, go, make_config

N_TRAIN, N_TEST = 47, 16
QUICK = {"epochs": 3, "batch_size": 8, "lr": 0.02}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


def cache_of(root, splits, *, bad=(5,), noise=1.5):
    labels, grids = separable(N_TRAIN + N_TEST, noise=noise)
    return make_cache(root, make_table(labels, splits), [FakeStore("net", {"x": grids})], bad=bad)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One image is quarantined."""
    return cache_of(tmp_path_factory.mktemp("turns") / "cache", ["train"] * N_TRAIN + ["test"] * N_TEST)


@pytest.fixture
def with_groups(monkeypatch):
    """Makes every cache that is opened have these groups."""

    opened = Cache.open

    def give(groups, column="patient"):
        def open_with(root):
            found = opened(root)
            return dataclasses.replace(
                found, table=dataclasses.replace(found.table, groups=groups, group_column=column)
            )

        monkeypatch.setattr(Cache, "open", staticmethod(open_with))

    return give


def heads_of(root):
    """Every head of a run, by its folder."""
    return {p.parent.relative_to(root).as_posix(): read_tensors(p)[0] for p in sorted(root.rglob("head.safetensors"))}


def same(one, other):
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def separate(tmp_path, rows, name, **changes):
    """A run of its own on a cache where `rows` are the split that is trained on, and `rest` the others of train."""
    splits = ["rest"] * N_TRAIN + ["test"] * N_TEST
    for row in rows:
        splits[row] = "chosen"
    other = cache_of(tmp_path / f"cache-{name}", splits)
    results = go(other, tmp_path / name, train_on="chosen", **changes)
    return results, tmp_path / name


@pytest.mark.parametrize(
    ("head", "recipe", "feed"), [("linear", QUICK, "host"), ("combo", SMALL["combo"] | QUICK, "stream")]
)
def test_each_fold_is_its_separate_run(head, recipe, feed, cache, tmp_path):
    go(cache, tmp_path / "run", head, folds=3, seeds=2, feed=feed, recipe=recipe)
    turns = json.loads((tmp_path / "run" / "turns.json").read_text())
    rows, folds = np.array(turns["rows"]), np.array(turns["folds"])
    assert rows.tolist() == [row for row in range(N_TRAIN) if row != 5]
    together = read_predictions(RunPaths(tmp_path / "run").predictions(OUT_OF_FOLD))
    for k in range(3):
        _, alone = separate(
            tmp_path, rows[folds != k], f"fold{k}", head=head, seeds=2, test_on="rest", feed=feed, recipe=recipe
        )
        for seed in range(2):
            assert same(heads_of(tmp_path / "run")[f"fold-{k}/seed-{seed}"], heads_of(alone)[f"seed-{seed}"])
        found = read_predictions(RunPaths(alone).predictions("rest"))
        here = together["fold"] == k
        assert np.array_equal(together["row"][here], found["row"])
        for column in ("seed", "predicted", "label"):
            assert np.array_equal(together[column][here], found[column])
        assert np.allclose(np.stack(together["logits"][here]), np.stack(found["logits"]), atol=1e-6)


def test_results_are_of_all_predictions_and_of_every_fold(cache, tmp_path):
    results = go(cache, tmp_path / "run", folds=4, seeds=2, recipe=QUICK)
    found = read_predictions(RunPaths(tmp_path / "run").predictions(OUT_OF_FOLD))
    assert results["split"] == OUT_OF_FOLD
    assert results["n"] == N_TRAIN - 1
    for seed in range(2):
        mine = found["seed"] == seed
        assert sorted(found["row"][mine].tolist()) == [row for row in range(N_TRAIN) if row != 5]
        assert results["metrics"]["top1"]["per_seed"][seed] == accuracy_score(
            found["label"][mine], found["predicted"][mine]
        )
    of_folds = results["folds"]
    for name, score in (("top1", accuracy_score), ("balanced_accuracy", balanced_accuracy_score)):
        expected = []
        for k in range(4):
            here = [(found["fold"] == k) & (found["seed"] == seed) for seed in range(2)]
            expected.append(np.mean([score(found["label"][h], found["predicted"][h]) for h in here]))
        assert of_folds["metrics"][name]["per_fold"] == pytest.approx(expected)
        assert of_folds["metrics"][name]["mean"] == pytest.approx(np.mean(expected))
        assert of_folds["metrics"][name]["std"] == pytest.approx(np.std(expected, ddof=1))
    assert 0 < results["metrics"]["top1"]["mean"] < 1  # else nothing above could differ
    assert of_folds["images"] == [int((found["fold"][found["seed"] == 0] == k).sum()) for k in range(4)]
    assert evaluate(tmp_path / "run", OUT_OF_FOLD)["metrics"] == results["metrics"]


def test_features_are_read_once_for_all_turns(cache, tmp_path, monkeypatch):
    loaded = []
    original = sources._load
    monkeypatch.setattr(sources, "_load", lambda *given: loaded.append(given[3]) or original(*given))
    go(cache, tmp_path / "folds", folds=5, feed="host", recipe=QUICK)
    assert [len(rows) for rows in loaded] == [N_TRAIN - 1]


def test_a_part_of_a_feed_gives_what_a_feed_of_its_own_gives(cache):
    from loffta.dataset.features import choose_features

    features, rows = choose_features(cache, (), ("mean",), default_taps="all"), np.array([1, 4, 6, 7, 20, 33, 40])
    for mode in ("host", "stream"):
        with Feed(features, np.arange(6, 47), batch_size=4, mode=mode) as whole:
            inside = rows[rows >= 6]
            with Feed(features, inside, batch_size=2, mode=mode, of=whole) as part:
                found = [(b.rows.clone(), b.features[0].clone()) for b in part.epoch(0)]
            with Feed(features, inside, batch_size=2, mode=mode) as alone:
                expected = [(b.rows.clone(), b.features[0].clone()) for b in alone.epoch(0)]
        assert len(found) == len(expected) == 3
        for one, other in zip(found, expected, strict=True):
            assert all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{"folds": 3}, {"shots": (1, 2), "draws": 2}])
def test_goes_on_with_the_turn_that_was_cut_off(options, cache, tmp_path, monkeypatch):
    whole = go(cache, tmp_path / "whole", seeds=2, recipe=QUICK, **options)
    from loffta.training import fit as fitting

    steps = []
    original = fitting._prepare_step

    def stop_at(flag):
        def count(member, step, total):
            steps.append(step)
            if len(steps) == 2 * 7:  # of two seeds: in the second turn of three folds, or a later draw
                flag.signal = 15
            return original(member, step, total)

        return count

    flag = StopFlag()
    monkeypatch.setattr(fitting, "_prepare_step", stop_at(flag))
    config = make_config(cache, recipe=QUICK, seeds=2, **options)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", flag)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("head.safetensors")}
    n_before = len(steps)
    results = train(config, tmp_path / "run", StopFlag())
    assert len(steps) - n_before < len(steps)
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    expected, found = heads_of(tmp_path / "whole"), heads_of(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert all(same(found[name], expected[name]) for name in found)
    assert results["metrics"] == whole["metrics"]
    assert not list((tmp_path / "run").rglob("checkpoint*"))
    before = files(tmp_path / "run")
    assert train(config, tmp_path / "run", StopFlag())["metrics"] == whole["metrics"]
    assert files(tmp_path / "run") == before  # read back


def test_a_head_that_was_deleted_is_trained_again(cache, tmp_path):
    go(cache, tmp_path / "run", folds=3, recipe=QUICK)
    path = RunPaths(tmp_path / "run").turn("fold-1").head(0)
    before = path.read_bytes()
    others = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("head.safetensors") if p != path}
    path.unlink()
    go(cache, tmp_path / "run", folds=3, recipe=QUICK)
    assert path.read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_on_another_split_every_fold_is_a_head_of_its_own(cache, tmp_path):
    go(cache, tmp_path / "run", folds=3, seeds=2, recipe=QUICK)
    found = evaluate(tmp_path / "run", "test")
    assert len(found["metrics"]["top1"]["per_seed"]) == 6
    assert found["n"] == N_TEST
    assert "folds" not in found


GROUPS = [f"p{row % 16 // 2}" for row in range(N_TRAIN + N_TEST)]


def test_no_group_is_on_both_sides_and_intervals_are_over_groups(cache, tmp_path, with_groups):
    plain = go(cache, tmp_path / "plain", folds=3, recipe=QUICK)
    with_groups(GROUPS)
    results = go(cache, tmp_path / "run", folds=3, group="patient", recipe=QUICK)
    found = read_predictions(RunPaths(tmp_path / "run").predictions(OUT_OF_FOLD))
    groups = np.array(GROUPS)[found["row"]]
    for group in set(GROUPS):
        assert len(set(found["fold"][groups == group])) == 1
    assert results["folds"]["group"] == "patient"
    assert results["folds"]["groups"] == 8
    right = found["predicted"] == found["label"]
    rng = np.random.default_rng(0)  # the obvious cluster bootstrap: groups are drawn, all their images come along
    names = sorted(set(GROUPS))
    drawn = [np.concatenate([right[groups == g] for g in rng.choice(names, 8)]).mean() for _ in range(4000)]
    assert results["metrics"]["top1"]["ci95"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.035)
    assert "group" not in plain["folds"]
    runs = read_runs([tmp_path / "plain", tmp_path / "run"])  # beside it, groups are drawn for a run without, too
    told = interval_of(Comparisons(runs).scored(runs[0]))
    found = read_predictions(RunPaths(tmp_path / "plain").predictions(OUT_OF_FOLD))
    right, groups = found["predicted"] == found["label"], np.array(GROUPS)[found["row"]]
    drawn = [np.concatenate([right[groups == g] for g in rng.choice(names, 8)]).mean() for _ in range(4000)]
    assert told == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.035)
    with_groups(None)  # the run keeps its own
    assert evaluate(tmp_path / "run", OUT_OF_FOLD)["metrics"] == results["metrics"]


ONE_GROUP = ["a" if row % 3 == 2 else f"p{row % 7}" for row in range(N_TRAIN + N_TEST)]


@pytest.mark.parametrize(
    ("groups", "column", "options", "told"),
    [
        (None, None, {"folds": 48}, r"48 folds cannot be made of 46 images(.|\n)*--folds 46"),
        (
            None,
            None,
            {"folds": 17},
            r"classes class 0, class 1, class 2: fewer images than 17 folds \(the fewest: 14\)",
        ),
        (
            None,
            None,
            {"folds": 3, "group": "patient"},
            r"has no groups, and no 'patient'(.|\n)*loffta label CACHE FILE",
        ),
        (GROUPS, "site", {"folds": 3, "group": "patient"}, r"has groups 'site' alone(.|\n)*use --group site"),
        (GROUPS, "patient", {"folds": 9, "group": "patient"}, r"9 folds cannot be made of 8 patient groups"),
        (ONE_GROUP, "patient", {"folds": 3, "group": "patient"}, r"class class 2 is in one group alone, a:"),
        ([None, *GROUPS[1:]], "patient", {"folds": 3, "group": "patient"}, r"1 of 46 images have no patient"),
        (GROUPS, "patient", {"group": "patient"}, r"--group is for --folds K"),
        (None, None, {"draws": 3}, r"--draws is for --shots"),
        (
            None,
            None,
            {"shots": (1, 99)},
            r"not 99 images of every class to draw from: class 2 has 14, (.|\n)*draw 14 at most",
        ),
        (None, None, {"folds": 3, "shots": (1,)}, "--shots and --folds exclude each other"),
        (None, None, {"folds": 3, "search": True}, "--folds and --search exclude each other"),
        (None, None, {"folds": 3, "holdout": 0.2}, "--folds and --holdout exclude each other"),
        (None, None, {"folds": 3, "validate_on": "test"}, "--folds and --validate-on exclude each other"),
        (None, None, {"folds": 3, "select": 1}, "--folds and --select exclude each other"),
        (None, None, {"shots": (1,), "search": True}, "--shots and --search exclude each other"),
        (None, None, {"folds": 3, "test_on": "other"}, "not split 'other'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    groups, column, options, told, cache, tmp_path, with_groups
):
    if groups is not None:
        with_groups(groups, column)
    with pytest.raises(LofftaError, match=told):
        go(cache, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folds", [1, 0, -2, 5000])
def test_a_number_of_folds_that_nobody_means(folds, cache):
    with pytest.raises(ValueError, match="folds"):
        make_config(cache, folds=folds)


@pytest.mark.parametrize("shots", ["a", "1,,2", "-1", "", [0], [1.5]])
def test_sizes_that_are_none(shots, cache):
    with pytest.raises(ValueError, match="shots"):
        make_config(cache, shots=shots)


def test_sizes_are_numbers_with_commas(cache):
    assert make_config(cache, shots="10,1,5,1").shots == (1, 5, 10)


def test_regression_and_several_classes_have_no_shots(cache, tmp_path):
    from loffta.dataset.parts import check_shots

    n = len(cache.table)
    values = dataclasses.replace(cache.table, values=np.arange(float(n)), labels=np.full(n, -1), classes=())
    several = dataclasses.replace(cache.table, label_sets=[(0,)] * n, labels=np.full(n, -1))
    for table in (values, several):
        with pytest.raises(UsageError, match=f"these labels are {table.label_kind}"):
            check_shots(table, np.arange(n), (1,))


def test_all_groups_of_a_class_in_one_fold_are_refused(cache):
    from loffta.dataset.parts import _refuse_unlearnt

    labels, folds = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1])
    with pytest.raises(LofftaError, match=r"all groups with class class 1 lie in fold 1"):
        _refuse_unlearnt(cache.table, labels, folds, 2)


def test_folds_of_several_classes_spread_the_rare_ones(cache):
    from loffta.dataset.parts import part_rows

    n = len(cache.table)
    sets = [(0, 1) if row % 10 == 3 else (0,) if row % 2 else () for row in range(n)]
    table = dataclasses.replace(cache.table, label_sets=sets, labels=np.full(n, -1))
    folds = part_rows(table, np.arange(n), 3, None, None, 0)
    rare = [sum(1 in sets[row] for row in np.flatnonzero(folds == k)) for k in range(3)]
    assert max(rare) - min(rare) <= 1


def test_other_images_than_those_that_were_parted_are_refused(cache, tmp_path):
    go(cache, tmp_path / "run", folds=3, recipe=QUICK)
    labels, grids = separable(N_TRAIN + N_TEST, seed=3)
    table = make_table(labels, ["train"] * N_TRAIN + ["test"] * N_TEST)
    other = make_cache(
        tmp_path / "other",
        dataclasses.replace(table, keys=[f"other/{key}" for key in table.keys]),
        [FakeStore("net", {"x": grids})],
    )
    with pytest.raises(LofftaError, match=r"the images that this run parted are not in this cache"):
        evaluate(tmp_path / "run", OUT_OF_FOLD, cache=other)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"folds": [0, 1]}, "folds: not one for every row"),
        ({"folds": None}, "neither these nor draws"),
        ({"rows": []}, "rows"),
    ],
)
def test_a_turns_file_that_cannot_be_meant(change, told, cache, tmp_path):
    go(cache, tmp_path / "run", folds=3, recipe=QUICK)
    path = tmp_path / "run" / "turns.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LofftaError, match=told):
        evaluate(tmp_path / "run", OUT_OF_FOLD)


def test_each_draw_is_its_separate_run_and_makes_a_curve(cache, tmp_path):
    results = go(cache, tmp_path / "run", shots=(1, 2, 5, 10), draws=2, seeds=2, recipe=QUICK)
    drawn = json.loads((tmp_path / "run" / "turns.json").read_text())["draws"]
    assert list(drawn) == [f"shots-{n}/draw-{d}" for n in (1, 2, 5, 10) for d in range(2)]
    curve = results["learning_curve"]
    for name in ("shots-1/draw-1", "shots-10/draw-0"):
        labels = cache.table.labels[drawn[name]]
        shots, draw = int(name.split("/")[0].removeprefix("shots-")), int(name[-1])
        assert np.bincount(labels).tolist() == [shots] * 3
        alone, root = separate(tmp_path, drawn[name], name.replace("/", "-"), seeds=2, recipe=QUICK)
        for seed in range(2):
            assert same(heads_of(tmp_path / "run")[f"{name}/seed-{seed}"], heads_of(root)[f"seed-{seed}"])
        point = next(point for point in curve["points"] if point["shots"] == shots)
        per_seed = point["metrics"]["top1"]["per_seed"]
        assert per_seed[2 * draw : 2 * draw + 2] == alone["metrics"]["top1"]["per_seed"]
    assert [point["images"] for point in curve["points"]] == [3, 6, 15, 30]
    assert results["metrics"]["top1"]["per_seed"] == curve["points"][-1]["metrics"]["top1"]["per_seed"]
    for point in curve["points"]:
        low, high = point["interval"]
        assert 0 <= low <= point["metrics"]["top1"]["mean"] <= high <= 1
    found = read_predictions(RunPaths(tmp_path / "run").predictions("test"))
    assert set(found["seed"].tolist()) == {0, 1, 2, 3}
    assert len(found["row"]) == 4 * N_TEST
    assert "power law" in curve["told"]
    again = evaluate(tmp_path / "run", "test")
    assert again["learning_curve"] == curve


def test_draws_leave_a_holdout_alone(cache, tmp_path):
    results = go(cache, tmp_path / "run", shots=(1, 2), draws=2, holdout=0.3, test_on="holdout", recipe=QUICK)
    held = set(json.loads((tmp_path / "run" / "holdout.json").read_text())["rows"])
    drawn = json.loads((tmp_path / "run" / "turns.json").read_text())["draws"]
    assert all(not held & set(rows) for rows in drawn.values())
    assert results["n"] == len(held)
    assert "trained_on" not in results["images"]
    seen = evaluate(tmp_path / "run", "train", device="cpu")["images"]["trained_on"]
    assert seen == len(set().union(*drawn.values())), "of all draws; the rest of the split is new to the heads"
