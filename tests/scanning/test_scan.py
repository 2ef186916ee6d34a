"""The whole path of a scan, on tiny caches: every figure against scikit-learn on the vectors that were written."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from loffta.config import ScanConfig
from loffta.dataset.parts import part_rows
from loffta.dataset.splits import HOLDOUT, draw_by_key, draw_part
from loffta.errors import LofftaError, UsageError
from loffta.machine.process import StopFlag
from loffta.probes.logreg import CS
from loffta.probes.ridge import STRENGTHS
from loffta.scanning import scan as driver
from loffta.scanning.scan import scan
from loffta.store.reader import ArrayReader
from tests.caches import FakeStore, make_cache, make_table

N_TRAIN, N_TEST, N_CLASSES = 60, 40, 3
ALL = ("knn", "ncm", "ridge", "logreg")


def hard(n_images, dim, seed, n_classes=N_CLASSES, signal=0.9):
    """Labels in turn, means that overlap, far from the origin; grids [n, 2, 2, dim]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_images) % n_classes
    centres = rng.normal(size=(n_classes, dim))
    return (signal * centres[labels][:, None, None] + rng.normal(size=(n_images, 2, 2, dim)) * 2 + 3).astype(np.float32)


def a_table(n_train=N_TRAIN, n_test=N_TEST, n_classes=N_CLASSES, **more):
    return make_table(np.arange(n_train + n_test) % n_classes, ["train"] * n_train + ["test"] * n_test, **more)


def two_stores(n_images, n_classes=N_CLASSES):
    """A ViT of two taps with class tokens, and a net of one tap without."""
    first = {f"blocks.{i}": hard(n_images, 8, i, n_classes) for i in range(2)}
    prefixes = {tap: hard(n_images, 8, 10 + i, n_classes)[:, 0] for i, tap in enumerate(first)}
    vit = FakeStore("vit", first, prefixes=prefixes, kinds=("grid", "prefix"), dtype="float32")
    return [vit, FakeStore("net", {"stages.1": hard(n_images, 5, 3, n_classes)}, dtype="float32")]


def run(cache, **options):
    config = ScanConfig(cache=cache.paths.root, device="cpu", **options)
    return scan(config, StopFlag())


def written(cache, backbone, tap, pooling="mean"):
    """The layer's vectors in float64, read array by array."""
    (store,) = [s for s in cache.stores() if s.info.recipe["backbone"] == backbone]

    def read(kind):
        array = store.find(kind, tap)
        reader = ArrayReader(array.paths)
        return reader.read(np.arange(len(cache.table)))[:, array.taps.index(tap)].astype(np.float64)

    mean = read("grid").mean(axis=(1, 2))
    if pooling == "mean" or backbone == "net":
        return mean
    return read("prefix")[:, 0] if pooling == "cls" else np.concatenate([read("prefix")[:, 0], mean], axis=1)


def theirs(head, x, labels, train, chosen):
    """What scikit-learn has fitted with what was chosen."""
    if head == "knn":
        near = {"algorithm": "brute", "metric": "cosine", "weights": lambda d: np.exp((1 - d) / 0.07)}
        model = KNeighborsClassifier(chosen["k"], **near)
    elif head == "ncm":
        model = NearestCentroid()
    elif head == "ridge":
        model = RidgeClassifier(chosen["strength"] * len(train), solver="svd")
    else:
        model = LogisticRegression(C=chosen["C"], tol=1e-7, max_iter=5_000)
    return model.fit(x[train] - x[train].mean(axis=0) if head == "logreg" else x[train], labels[train])


def score(head, x, labels, train, test, chosen):
    model = theirs(head, x, labels, train, chosen)
    seen = x[test] - x[train].mean(axis=0) if head == "logreg" else x[test]
    return (model.predict(seen) == labels[test]).mean()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("scan") / "cache", a_table(), two_stores(N_TRAIN + N_TEST))


def test_every_row_is_scikit_learns(cache):
    """Every backbone, tap, pooling and head; a backbone without class token has its mean, once."""
    found = run(cache, heads=ALL, pooling=("mean", "cls", "cls+mean"))
    layers = {(row.backbone, row.tap, row.pooling) for row in found.rows}
    vit = {("vit", tap, pooling) for tap in ("blocks.0", "blocks.1") for pooling in ("mean", "cls", "cls+mean")}
    assert layers == vit | {("net", "stages.1", "mean")}
    assert len(found.rows) == 4 * len(layers)
    labels, train, test = cache.table.labels, np.arange(N_TRAIN), np.arange(N_TRAIN, N_TRAIN + N_TEST)
    for row in found.rows:
        x = written(cache, row.backbone, row.tap, row.pooling)
        assert row.n_columns == x.shape[1]
        assert row.score == pytest.approx(score(row.head, x, labels, train, test, row.chosen[0]), abs=1e-9)
        assert row.ci95[0] <= row.score <= row.ci95[1]
    assert len({row.score for row in found.rows}) > 5, "or there was nothing to compare"
    assert [row.score for row in found.rows] == sorted((row.score for row in found.rows), reverse=True)


def test_strengths_are_those_that_a_fifth_of_the_training_images_chooses(cache):
    found = run(cache, heads=("ridge", "logreg"), features=("vit:blocks.0",))
    labels, train = cache.table.labels, np.arange(N_TRAIN)
    x = written(cache, "vit", "blocks.0")
    held = draw_part(labels[train], 0.2, 0)
    fit, validate = train[~held], train[held]
    hot = np.eye(N_CLASSES)[labels] * 2 - 1
    errors, losses = [], []
    for strength in STRENGTHS:
        model = theirs("ridge", x, labels, fit, {"strength": strength})
        errors.append(((model.decision_function(x[validate]) - hot[validate]) ** 2).mean())
    for c in CS:
        model = theirs("logreg", x, labels, fit, {"C": c})
        chances = model.predict_proba(x[validate] - x[fit].mean(axis=0))
        losses.append(-np.log(chances[np.arange(len(validate)), labels[validate]]).sum())
    chosen = {row.head: row.chosen[0] for row in found.rows}
    assert chosen["ridge"]["strength"] == STRENGTHS[int(np.argmin(errors))]
    assert chosen["logreg"]["C"] == CS[int(np.argmin(losses))]
    assert 0 < np.argmin(losses) < len(CS) - 1, "or there was nothing to choose"


def test_folds_test_every_image_by_heads_of_the_others(cache):
    found = run(cache, folds=4, heads=ALL, features=("vit:blocks.1",))
    labels, train = cache.table.labels, np.arange(N_TRAIN)
    fold, x = part_rows(cache.table, train, 4, None, None, 0), written(cache, "vit", "blocks.1")
    assert (found.n_images, found.n_folds, found.tested_on) == (N_TRAIN, 4, "train")
    for row in found.rows:
        right = [
            score(row.head, x, labels, train[fold != i], train[fold == i], row.chosen[i]) * (fold == i).sum()
            for i in range(4)
        ]
        assert row.score == pytest.approx(sum(right) / N_TRAIN, abs=1e-9)


def test_groups_are_on_one_side_of_every_fold(tmp_path):
    table = a_table()
    patients = [f"patient {i // 6}" for i in range(len(table))]
    object.__setattr__(table, "groups", patients)
    object.__setattr__(table, "group_column", "patient")
    cache = make_cache(tmp_path / "cache", table, two_stores(len(table))[1:])
    opened = driver.Cache.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.Cache, "open", classmethod(lambda cls, root: driver_with(opened(root), table)))
        plans = seen_plans(patch)
        run(cache, folds=3, group="patient", heads=("ncm",))
    (plan,) = plans
    for trial in plan.trials:
        sides = [{patients[row] for row in rows} for rows in (plan.rows(trial.refit), plan.tested[trial.test])]
        assert not sides[0] & sides[1]
        assert not {patients[row] for row in plan.rows(trial.fit)} & {
            patients[row] for row in plan.rows(trial.validate)
        }
    with pytest.raises(UsageError, match="add --folds"):
        run(cache, group="patient")


def driver_with(cache, table):
    object.__setattr__(cache, "table", table)
    return cache


def seen_plans(patch):
    plans, make = [], driver.make_plan

    def noted(*args):
        plans.append(make(*args))
        return plans[-1]

    patch.setattr(driver, "make_plan", noted)
    return plans


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # scikit-learn's, of one image a class
def test_few_images_of_each_class_are_drawn_several_times(cache, monkeypatch):
    plans = seen_plans(monkeypatch)
    found = run(cache, shots=(1, 4), draws=3, heads=("ncm", "knn", "ridge"), features=("vit:blocks.0",))
    (plan,) = plans
    labels, x, test = cache.table.labels, written(cache, "vit", "blocks.0"), np.arange(N_TRAIN, N_TRAIN + N_TEST)
    assert found.shots == [1, 4]
    assert "of the drawn images" in found.chosen_on
    for row in found.rows:
        trials = [trial for trial in plan.trials if trial.shots == row.shots]
        scores = []
        for trial, chosen in zip(trials, row.chosen, strict=True):
            rows = plan.rows(trial.refit)
            assert np.bincount(labels[rows]).tolist() == [row.shots] * N_CLASSES
            scores.append(score(row.head, x, labels, rows, test, chosen))
        assert row.per_draw == pytest.approx(scores, abs=1e-9)
        assert row.score == pytest.approx(np.mean(scores))
        if row.head == "knn":
            assert row.chosen[0] == {"k": min(20, 3 * row.shots)}


def test_groups_of_taps_that_fit_into_memory_change_no_figure(cache, monkeypatch):
    whole = run(cache, heads=ALL)
    monkeypatch.setattr(driver, "free_bytes", lambda _: 1)
    parts = run(cache, heads=ALL)
    assert parts.rows == whole.rows
    assert parts.bytes_read == whole.bytes_read


def test_what_is_held_out_chooses_or_is_tested(cache, tmp_path, monkeypatch):
    plans = seen_plans(monkeypatch)
    found = run(cache, holdout=0.3, heads=("ridge",))
    (plan,) = plans
    keys = [cache.table.keys[row] for row in range(N_TRAIN)]
    held = np.flatnonzero(draw_by_key(keys, cache.table.labels[:N_TRAIN], 0.3, 0))
    np.testing.assert_array_equal(plan.rows(plan.trials[0].validate), held)
    np.testing.assert_array_equal(plan.rows(plan.trials[0].refit), np.setdiff1d(np.arange(N_TRAIN), held))
    assert found.chosen_on == "split holdout"
    alone = make_cache(tmp_path / "alone", a_table(n_test=0), two_stores(N_TRAIN)[1:])
    with pytest.raises(UsageError, match="--holdout"):
        run(alone)
    found = run(alone, holdout=0.3)
    assert found.tested_on == HOLDOUT
    assert found.n_images == len(held)


def test_several_classes_an_image(tmp_path):
    table = a_table(90, 60)
    rng = np.random.default_rng(0)
    hot = np.stack([table.labels == 0, table.labels > 0, rng.random(150) < 0.4], axis=1)
    object.__setattr__(table, "label_sets", [tuple(np.flatnonzero(row).tolist()) for row in hot])
    object.__setattr__(table, "labels", np.full(150, -1))
    cache = make_cache(tmp_path / "cache", table, two_stores(150)[1:])
    found = run(cache, heads=("ridge", "logreg"))
    x, train, test = written(cache, "net", "stages.1"), np.arange(90), np.arange(90, 150)
    assert found.metric == "map"
    for row in found.rows:
        models = [theirs(row.head, x, hot[:, c].astype(int), train, row.chosen[0]) for c in range(3)]
        seen = x[test] - x[train].mean(axis=0) if row.head == "logreg" else x[test]
        scores = np.stack([model.decision_function(seen) for model in models], axis=1)
        close = 1e-6 if row.head == "ridge" else 1e-3  # its minimum is a few 1e-6 away: two images may change places
        assert row.score == pytest.approx(average_precision_score(hot[test], scores), abs=close)
    assert {row.head for row in run(cache).rows} == {"ridge"}
    with pytest.raises(UsageError, match="use --heads ridge,logreg"):
        run(cache, heads=("knn",))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_perfect_separation_and_classes_without_training_images_have_answers(tmp_path, n_classes):
    """Two classes are one column; a class that only the test knows is never chosen, and costs its images."""
    labels = np.concatenate([np.arange(30) % 2, np.arange(12) % n_classes])
    table = make_table(labels, ["train"] * 30 + ["test"] * 12)
    grids = np.zeros((42, 1, 1, 2), np.float32)
    grids[np.arange(42), 0, 0, labels % 2] = 5.0
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"a": grids})])
    found = run(cache, heads=ALL)
    for row in found.rows:
        assert row.score == pytest.approx((labels[30:] < 2).mean())
        assert row.tied
        assert row.rank == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 61}, "choose --k of at most 60"),
        ({"k": 7, "shots": (2,)}, "choose --k of at most 6"),
        ({"shots": (21,)}, "there are not 21 images of every class"),
        ({"folds": 3, "shots": (2,)}, "--folds and --shots exclude"),
        ({"folds": 3, "holdout": 0.2}, "--folds and --holdout exclude"),
        ({"folds": 3, "validate_on": "test"}, "--folds and --validate-on exclude"),
        ({"folds": 21}, "fewer images than 21 folds"),
        ({"test_on": "tset"}, "did you mean test"),
        ({"validate_on": "train"}, "is trained on"),
        ({"features": ("vit:blocks.7",)}, "blocks.1"),
    ],
)
def test_what_cannot_be_done_is_told(cache, options, message):
    with pytest.raises(LofftaError, match=message):
        run(cache, **options)


def test_one_class_is_nothing_to_learn(tmp_path):
    table = make_table([0] * 20 + [0, 1] * 4, ["train"] * 20 + ["test"] * 8)
    cache = make_cache(tmp_path / "cache", table, two_stores(28, 2)[1:])
    with pytest.raises(LofftaError, match="are of one class") as told:
        run(cache)
    assert "--one-class" not in str(told.value), "a scan has no such option"


def test_quarantined_and_missing_images_are_left_out(tmp_path):
    cache = make_cache(tmp_path / "cache", a_table(), two_stores(N_TRAIN + N_TEST)[1:], bad=(3, 70))
    found = run(cache)
    assert (found.n_trained, found.n_images) == (N_TRAIN - 1, N_TEST - 1)
    assert found.left_out == {"bad": 2, "unlabelled": 0}


def test_labels_beside_the_set_are_what_is_right(cache, tmp_path):
    """Two classes in one: both are then told from the third alone."""
    table, file = cache.table, tmp_path / "two.csv"
    rows = [
        f"{key},{'a' if label else 'b'},{s}"
        for key, label, s in zip(table.keys, table.labels, table.splits, strict=True)
    ]
    file.write_text("\n".join(["image,label,split", *rows]) + "\n")
    labels, train, test = np.minimum(table.labels, 1), np.arange(N_TRAIN), np.arange(N_TRAIN, N_TRAIN + N_TEST)
    for row in run(cache, labels=str(file), heads=("ncm",)).rows:
        x = written(cache, row.backbone, row.tap)
        assert row.score == pytest.approx(score("ncm", x, labels, train, test, {}), abs=1e-9)


def test_images_that_are_trained_on_are_named_where_they_are_tested(cache, capsys):
    run(cache, test_on="train", heads=("knn",), k=1)
    assert f"{N_TRAIN} images of split 'train' are trained on, too" in capsys.readouterr().err


def test_every_byte_of_a_grid_is_read_once(cache, monkeypatch):
    rows = []
    read = ArrayReader.read

    def noted(self, wanted, taps=None, *args, **more):
        rows.extend((self.paths.name, int(row), tap) for row in wanted for tap in (taps or range(99)))
        return read(self, wanted, taps, *args, **more)

    monkeypatch.setattr(ArrayReader, "read", noted)
    run(cache, heads=ALL)
    assert len(rows) == len(set(rows))


def test_a_number_per_image_is_ridges(tmp_path):
    table = a_table()
    x = hard(len(table), 5, 3)
    values = x.mean(axis=(1, 2))[:, 0] * 10 + np.random.default_rng(0).normal(size=len(table)) + 500
    object.__setattr__(table, "values", values)
    object.__setattr__(table, "labels", np.full(len(table), -1))
    cache = make_cache(tmp_path / "cache", table, two_stores(len(table))[1:])
    found = run(cache)
    (row,) = found.rows
    vectors = written(cache, "net", "stages.1")
    model = Ridge(row.chosen[0]["strength"] * N_TRAIN, solver="svd").fit(vectors[:N_TRAIN], values[:N_TRAIN])
    assert (found.metric, row.head) == ("r2", "ridge")
    assert row.score == pytest.approx(model.score(vectors[N_TRAIN:], values[N_TRAIN:]), abs=1e-4)
    assert 0.1 < row.score < 0.999
    assert run(cache, folds=4).n_images == N_TRAIN
    with pytest.raises(UsageError, match=r"use --heads ridge$"):
        run(cache, heads=("knn",))


def test_one_value_is_nothing_to_learn_or_to_measure(tmp_path):
    for i, known in enumerate((slice(0, N_TRAIN), slice(N_TRAIN, None))):
        table = a_table()
        values = np.arange(len(table), dtype=float)
        values[known] = 7
        object.__setattr__(table, "values", values)
        object.__setattr__(table, "labels", np.full(len(table), -1))
        cache = make_cache(tmp_path / f"cache{i}", table, two_stores(len(table))[1:])
        with pytest.raises(LofftaError, match=f"images of split '{('train', 'test')[i]}' have the value 7"):
            run(cache)
