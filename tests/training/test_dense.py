"""Dense heads from a cache to results.json: what they learn, how they are measured, and that it goes on as it began."""

import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix

from loffta.dataset.dense import open_targets
from loffta.dataset.features import choose_features
from loffta.dataset.views import with_views
from loffta.errors import LofftaError, Stopped, UsageError
from loffta.evaluation import dense as measuring
from loffta.evaluation.evaluate import evaluate
from loffta.heads import HEADS
from loffta.machine.process import StopFlag
from loffta.runs.claims import take
from loffta.runs.run import RunLog, RunPaths, read_predictions, read_results
from loffta.store.zarr_reader import open_array
from loffta.targets import NativeTarget
from loffta.tasks.dense import DENSE_TASKS
from loffta.training import fit as loop
from loffta.training.cached import CachedSupply
from loffta.training.fit import Session, fit
from loffta.training.loss import Mix
from loffta.training.remember import remember
from loffta.training.train import train
from tests import dense as given
from tests.caches import FakeStore, make_cache, make_table
from tests.training.denseruns import N_TEST, N_TRAIN, config_of, dense_cache, enlarged, go, scenes

KINDS = ("mask", "instances", "depth", "boxes")
PERFECT = {"epochs": 60, "batch_size": 20, "lr": 0.05, "weight_decay": 0.0}
ADJUSTED = {"hflip_p": 0.5, "rotation_deg": 20, "mixup_alpha": 0.3}  # of everything that moves targets


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("dense") / "cache", kinds=KINDS, missing=(3, 25, 26))


@pytest.fixture(scope="module")
def perfect(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("perfect") / "run"
    return out, go(cache, out, "dense-linear", recipe=PERFECT, protocol="ours", seeds=2)


def test_features_that_say_the_class_are_read_almost_without_error(perfect):
    _, results = perfect
    assert results["metrics"]["miou"]["mean"] > 0.95
    assert results["metrics"]["pixel_accuracy"]["mean"] > 0.98


def test_features_of_the_centre_are_measured_there(tmp_path):
    """Of 32 x 48 pixels the features show 16 x 16 in the middle; around it all is of another class."""
    cells, shown = scenes(N_TRAIN + N_TEST), {"resize": "crop", "crop_pct": 0.5, "crop_mode": "center"}
    grids = np.eye(3, dtype=np.float32)[cells]
    table = make_table(np.arange(len(cells)) % 2, ["train"] * N_TRAIN + ["test"] * N_TEST)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"a": grids}, shown=shown)])
    masks, squares = np.full((len(cells), 32, 48), 2, np.uint8), enlarged(cells, 16, 16)
    masks[:, 8:24, 16:32] = squares
    given.write_native(cache, "mask", [NativeTarget("mask", 32, 48, map=mask) for mask in masks])
    given.write_maps(cache, "mask", squares, shown)
    results = go(cache, tmp_path / "run", "dense-linear", recipe=PERFECT)
    assert results["metrics"]["pixel_accuracy"]["mean"] > 0.98
    assert results["dense"]["per_class"][2]["pixels"] == (squares[N_TRAIN:] == 2).sum()
    assert results["dense"]["geometry"] == shown


def outputs_by_hand(cache, out, seed, rows):
    """Of a trained linear head, from its file alone: BatchNorm, a map, bilinear."""
    feature = choose_features(cache, ["net:a.1"], ("grid",), default_taps="all")[0]
    values = open_array(feature.array.paths).read(rows)[:, feature.array.taps.index("a.1")].astype(np.float32)
    state = load_file(RunPaths(out).head(seed))
    named = {name.rpartition(".")[2]: value for name, value in state.items()}
    normed = (torch.from_numpy(values) - named["running_mean"]) / torch.sqrt(named["running_var"] + 1e-5)
    scale, shift = (state[name] for name in ("standardise.weight", "standardise.bias"))
    maps = (normed * scale + shift) @ state["classify.weight"].T + state["classify.bias"]
    return F.interpolate(maps.permute(0, 3, 1, 2), size=(16, 16), mode="bilinear")


def test_results_equal_a_plain_reference_at_the_labels_own_size(cache, perfect):
    out, results = perfect
    native = cache.native("mask")
    rows = np.array([row for row in range(N_TRAIN, N_TRAIN + N_TEST) if native.status[row] == "ok"])
    labels = [one.map for one in native.read(rows)]
    for seed in range(2):
        counts = np.zeros((3, 3))
        own = []
        for one, label in zip(outputs_by_hand(cache, out, seed, rows), labels, strict=True):
            logits = F.interpolate(one[None], size=label.shape, mode="bilinear")[0]
            told, has = logits.argmax(0).numpy()[label != 255], label[label != 255]
            counts += confusion_matrix(has, told, labels=range(3))
            own.append(np.mean(has == told))
        overlaps = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
        assert results["metrics"]["miou"]["per_seed"][seed] == pytest.approx(overlaps.mean(), abs=1e-6)
        kept = read_predictions(RunPaths(out).predictions_dense("test"))
        of_seed = kept["seed"] == seed
        assert kept["row"][of_seed].tolist() == rows.tolist()
        assert kept["pixel_accuracy"][of_seed] == pytest.approx(own, abs=1e-6)
    low, high = results["metrics"]["miou"]["ci95"]
    assert low <= results["metrics"]["miou"]["mean"] <= high


def test_what_results_say_beside_the_figures(perfect, cache):
    out, results = perfect
    assert read_results(RunPaths(out).results("test")) == results
    assert (results["protocol"], results["task"], results["n"]) == ("ours", "segmentation", N_TEST - 2)
    assert results["images"] == {"used": N_TEST - 2, "bad": 0, "unlabelled": 2}
    dense = results["dense"]
    assert (dense["target"], dense["output_px"], dense["settings"]["eval_px"]) == ("mask", 16, None)
    assert dense["classes"] == list(cache.native("mask").classes)
    assert dense["adapter_parameters"] == 6 * 2 + 6 * 3 + 3
    assert not RunPaths(out).predictions("test").exists()


def test_images_without_a_target_are_left_out_and_counted(cache, perfect, tmp_path, capsys):
    go(cache, tmp_path / "run", "dense-linear", recipe={"epochs": 1})
    told = capsys.readouterr().err
    assert "images of split train without a target 'mask': 1, left out" in told
    assert f"dense-linear: {N_TRAIN - 1} images" in told


@pytest.mark.parametrize("head", ["deap", "dense-linear"])
@pytest.mark.parametrize("task", DENSE_TASKS)
def test_every_task_is_trained_and_measured(cache, tmp_path, task, head):
    results = go(cache, tmp_path / "run", head, task, recipe={"embedding_dim": 4}, augment=ADJUSTED)
    assert DENSE_TASKS[task].headline in results["metrics"]
    kept = read_predictions(RunPaths(tmp_path / "run").predictions_dense("test"))
    assert {"row", "key", "seed", *results["metrics"]} <= {*kept}
    assert len(kept["row"]) == results["n"] == N_TEST - 2
    if head == "deap":
        again = evaluate(tmp_path / "run", "test", cache=cache, device="cpu")
        assert again["metrics"] == results["metrics"]


@pytest.mark.parametrize(("task", "head"), [("segmentation", "dense-linear"), ("instances", "deap")])
def test_stopped_at_any_step_and_gone_on_with(cache, tmp_path, monkeypatch, task, head):
    options = {"seeds": 2, "augment": ADJUSTED, "recipe": {"epochs": 1, "embedding_dim": 4}}
    go(cache, tmp_path / "whole", head, task, **options)
    step, n_steps = loop._step, -(-(N_TRAIN - 1) // 8)
    for moment in range(1, n_steps) if task == "segmentation" else (2,):
        stop, calls = StopFlag(), []

        def stopping(*arguments, stop=stop, calls=calls, moment=moment):
            calls.append(1)
            if len(calls) == 2 * moment:
                stop.signal = signal.SIGTERM
            return step(*arguments)

        monkeypatch.setattr(loop, "_step", stopping)
        out = tmp_path / str(moment)
        with pytest.raises(Stopped, match=f"training step {moment} of {n_steps}"):
            train(config_of(cache, head, task, **options), out, stop)
        monkeypatch.setattr(loop, "_step", step)
        go(cache, out, head, task, **options)
        same_heads(tmp_path / "whole", out, 2)


def same_heads(one, other, n_seeds):
    for seed in range(n_seeds):
        ours, theirs = (load_file(RunPaths(out).head(seed)) for out in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_target_is_another_training(cache, tmp_path, monkeypatch):
    """A checkpoint goes with the targets that it was begun with."""
    stop, step = StopFlag(), loop._step
    monkeypatch.setattr(loop, "_step", lambda *a: setattr(stop, "signal", signal.SIGTERM) or step(*a))
    with pytest.raises(Stopped, match=r"kept in checkpoint\.safetensors"):
        train(config_of(cache, "dense-linear"), tmp_path / "run", stop)
    monkeypatch.setattr(loop, "_step", step)
    monkeypatch.setattr(measuring.DenseTargets, "digest", lambda self, rows: "another")
    with pytest.raises(LofftaError, match="this checkpoint is of another training:\n    images: "):
        go(cache, tmp_path / "run", "dense-linear")


def session_of(cache, out, head, task, **changes):
    config = config_of(cache, head, task, **changes)
    recipe = HEADS[head].recipe(**config.recipe)
    features = choose_features(cache, (), recipe.kinds(), default_taps="last")
    features = with_views(cache, features, recipe.kinds()) if config.views else features
    dense = open_targets(cache, task, head, features, training=True)
    supply = CachedSupply(config, cache, features, dense=dense)
    out.mkdir()
    paths = RunPaths(out)
    return Session(config, supply, torch.device("cpu"), paths, RunLog(paths.log), StopFlag(), take(paths)), recipe


@pytest.mark.parametrize("task", ["segmentation", "instances"])
def test_seeds_side_by_side_equal_seeds_alone(cache, tmp_path, task):
    session, recipe = session_of(cache, tmp_path / "run", "deap", task, augment=ADJUSTED)
    rows = session.supply.rows("train")
    found = []
    with session.feed(rows, recipe) as feed:
        for seeds in ((0, 1), (1,)):
            members = [session.member(recipe, seed) for seed in seeds]
            fit(session, feed, members, session.keeper(str(seeds), feed, members), title="test")
            found.append(members[-1])
    for one, other in zip(found[0].head.state_dict().values(), found[1].head.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert found[0].log == found[1].log


def test_targets_move_with_the_features(cache, tmp_path):
    """Perfect features say the class of their cell, before and after they are moved."""
    augment = {"hflip_p": 0.5, "vflip_p": 0.5, "rotation_deg": 180, "fill": "border"}
    session, recipe = session_of(cache, tmp_path / "run", "dense-linear", "segmentation", augment=augment)
    with session.feed(session.supply.rows("train"), recipe) as feed:
        batch = next(iter(feed.epoch(0)))
        learner = session.objective.begin(feed.rows, [session.member(recipe, 0)])
        features, moved, _ = session.augment(batch.features, learner.targets(batch), torch.Generator().manual_seed(1))
    told = features[0][:, 0, :, :, :3].float()  # pixels 2i and 2i + 1 lie in cell i
    sure, classes = told.amax(-1) > 0.4, told.argmax(-1)  # half of the ones: the features are those of tap a.1
    cells = moved.maps.view(8, 8, 2, 8, 2).permute(0, 1, 3, 2, 4).flatten(3).long()
    plain = sure & (cells == cells[..., :1]).all(-1) & (cells[..., 0] < 3)
    assert plain.float().mean() > 0.5
    assert (cells[..., 0] == classes)[plain].float().mean() > 0.97
    assert not torch.equal(moved.maps, batch.targets.maps)


def test_a_mixed_image_is_both_of_its_images(cache, tmp_path):
    """By the sums and counts of every image alone."""
    session, recipe = session_of(cache, tmp_path / "run", "dense-linear", "segmentation")
    member = session.member(recipe, 0)
    with session.feed(session.supply.rows("train"), recipe) as feed:
        batch = next(iter(feed.epoch(0)))
        learner = session.objective.begin(feed.rows, [member])
        outputs = member.head(member.head.prepare(batch.features)).detach()
        partner, weight = torch.tensor([3, 0, 1, 2, 5, 4, 7, 6]), torch.linspace(0, 1, 8)
        found = learner.lower(member, outputs, learner.targets(batch), Mix(partner, weight))
        maps = batch.targets.maps.long()
    total = count = 0.0
    for i in range(8):
        for label, share in ((maps[i], weight[i]), (maps[partner[i]], 1 - weight[i])):
            valid = label < 255
            total += share * F.cross_entropy(outputs[i][:, valid].T, label[valid], reduction="sum")
            count += share * valid.sum()
    torch.testing.assert_close(found, total / count)


def test_folds_and_few_images(cache, tmp_path):
    results = go(cache, tmp_path / "folds", "dense-linear", folds=3, seeds=2)
    assert results["n"] == N_TRAIN - 1
    assert (results["folds"]["n"], sum(results["folds"]["images"])) == (3, N_TRAIN - 1)
    assert len(results["folds"]["metrics"]["miou"]["per_fold"]) == 3
    kept = read_predictions(RunPaths(tmp_path / "folds").predictions_dense("out-of-fold"))
    of_fold = np.array(results["folds"]["metrics"]["pixel_accuracy"]["per_fold"])
    assert kept["pixel_accuracy"].min() <= of_fold.min() <= of_fold.max() <= kept["pixel_accuracy"].max()
    few = go(cache, tmp_path / "few", "dense-linear", shots=(1, 2), draws=2)
    points = few["learning_curve"]["points"]
    assert [(point["shots"], point["images"]) for point in points] == [(1, 2), (2, 4)]
    assert len(few["metrics"]["miou"]["per_seed"]) == 2


def test_a_search_chooses_by_the_main_metric(cache, tmp_path):
    recipe = {"epochs": 8, "search_lr": [1e-5, 0.05]}
    results = go(cache, tmp_path / "run", "dense-linear", recipe=recipe, search=True)
    assert results["search"]["metric"] == "miou"
    assert results["search"]["chosen"]["lr"] == 0.05


def test_patches_are_remembered_in_one_pass(cache, tmp_path, capsys):
    results = go(cache, tmp_path / "run", "dense-knn", "auto", seeds=2, recipe={"memory": 400})
    assert results["metrics"]["miou"]["mean"] > 0.85
    kept = [load_file(RunPaths(tmp_path / "run").head(seed)) for seed in range(2)]
    assert [len(one["cells"]) for one in kept] == [(400 // (N_TRAIN - 1)) * (N_TRAIN - 1)] * 2
    assert not torch.equal(kept[0]["cells"], kept[1]["cells"])
    again = evaluate(tmp_path / "run", "test", cache=cache, output_px=32, device="cpu")
    assert again["metrics"]["miou"]["mean"] == pytest.approx(results["metrics"]["miou"]["mean"], abs=0.05)
    assert go(cache, tmp_path / "folds", "dense-knn", folds=2)["metrics"]["miou"]["mean"] > 0.85
    session, recipe = session_of(cache, tmp_path / "stopped", "dense-knn", "segmentation")
    member = session.member(recipe, 0)
    with session.feed(np.array([0, 1]), recipe) as feed:
        session.stop.signal = signal.SIGTERM
        with pytest.raises(Stopped, match="the same command begins anew"):
            remember(session, feed, [member], session.keeper("final", feed, [member]), title="train")
    for changed, words in (
        ({"task": "depth"}, "head 'dense-knn' is for segmentation"),
        ({"search": True}, "remembers the images as they are"),
        ({"augment": {"hflip_p": 0.5}}, "remembers the images as they are"),
    ):
        with pytest.raises(UsageError, match=words):
            go(cache, tmp_path / "refused", "dense-knn", **changed)


def test_a_memory_of_nothing_is_refused(tmp_path):
    cache = dense_cache(tmp_path / "cache", n_train=4, n_test=2, kinds=())
    given.write_native(cache, "mask", [NativeTarget("mask", 16, 16, map=np.full((16, 16), 255, np.uint8))] * 6)
    given.write_maps(cache, "mask", np.full((6, 16, 16), 255))
    with pytest.raises(LofftaError, match="none of the 4 images has a labelled pixel"):
        go(cache, tmp_path / "run", "dense-knn")


def test_the_backbone_that_says_something_is_selected(tmp_path):
    cache = dense_cache(tmp_path / "cache", noisy=True)
    recipe = {"epochs": 12, "lr": 0.01, "width": 8, "batch_size": 20}
    results = go(cache, tmp_path / "run", "combo-deap", recipe=recipe, select=1)
    assert {feature["label"] for feature in results["features"]} == {"net"}
    scoring = read_results(RunPaths(RunPaths(tmp_path / "run").scoring).results("test"))
    assert [entry["backbone"] for entry in scoring["relevance"]["backbones"]] == ["net", "nothing"]


def test_outputs_of_another_size_come_of_the_same_weights(cache, perfect):
    out, results = perfect
    larger = evaluate(out, "test", cache=cache, output_px=32, device="cpu")
    assert larger["dense"]["output_px"] == 32
    assert larger["metrics"]["miou"]["mean"] == pytest.approx(results["metrics"]["miou"]["mean"], abs=0.05)
    evaluate(out, "test", cache=cache, device="cpu")
    for px in (0, 5000):
        with pytest.raises(UsageError, match=f"{px} is no side of an output"):
            evaluate(out, "test", cache=cache, output_px=px, device="cpu")


def test_layers_stay_those_of_the_training_at_any_size(cache, tmp_path):
    """Deconv shrinks these 8 x 8 cells to the 2 x 2 queries of 16 px; built for 64 px it would have no such layer."""
    results = go(cache, tmp_path / "run", "deconv", "segmentation", recipe={"dim": 8})
    larger = evaluate(tmp_path / "run", "test", cache=cache, output_px=64, device="cpu")
    assert larger["dense"]["output_px"] == 64
    assert larger["dense"]["adapter_parameters"] == results["dense"]["adapter_parameters"]
    same = evaluate(tmp_path / "run", "test", cache=cache, device="cpu")
    assert same["metrics"] == results["metrics"]


def test_targets_of_other_classes_are_refused(perfect, tmp_path, monkeypatch):
    monkeypatch.setitem(given.CLASSES, "mask", ("sky", "cat", "dog"))
    other = dense_cache(tmp_path / "other")
    with pytest.raises(LofftaError, match="other classes than the training: sky, cat, dog instead of sky, dog, cat"):
        evaluate(perfect[0], "test", cache=other, device="cpu")


def test_every_instance_of_the_training_has_a_proxy(cache, tmp_path):
    session, recipe = session_of(cache, tmp_path / "run", "deap", "instances", recipe={"embedding_dim": 4})
    rows, member, counts = np.array([1, 4, 5, 9, 11]), session.member(recipe, 0), np.arange(N_TRAIN + N_TEST)
    session.objective.dense.native.n_objects[:] = counts
    learner = session.objective.begin(rows, [member])
    assert member.head.proxies.shape == (1 + 4 + 5 + 9 + 11, 4)
    expected = {1: 0, 4: 1, 5: 1 + 4, 9: 1 + 4 + 5, 11: 1 + 4 + 5 + 9}
    with session.feed(rows, recipe) as feed:
        for batch in feed.epoch(0):
            assert learner.targets(batch).first_instance.tolist() == [expected[row] for row in batch.rows.tolist()]
    assert {p.shape for group in member.optimizer.param_groups for p in group["params"]} >= {(30, 4)}


def test_without_an_instance_there_is_nothing_to_tell_apart(cache, tmp_path):
    session, recipe = session_of(cache, tmp_path / "run", "deap", "instances")
    session.objective.dense.native.n_objects[:] = 0
    with pytest.raises(LofftaError, match="none of the 2 images to train on has an instance"):
        session.objective.begin(np.arange(2), [session.member(recipe, 0)])


def test_a_measurement_takes_as_many_images_at_once_as_their_maps_have_room(cache, perfect, monkeypatch):
    out, results = perfect
    sizes, task = [], DENSE_TASKS["segmentation"]
    monkeypatch.setattr(measuring, "OUTPUT_BYTES", 2 * 3 * 16 * 16 * 4)
    spy = task._replace(records=lambda outputs, *rest: sizes.append(len(outputs)) or task.records(outputs, *rest))
    monkeypatch.setitem(DENSE_TASKS, "segmentation", spy)
    assert evaluate(out, "test", cache=cache, device="cpu")["metrics"] == results["metrics"]
    assert {*sizes} == {2}


def test_outputs_that_are_no_numbers_name_their_image(cache, perfect, monkeypatch):
    load = measuring.load_each

    def broken(*arguments, **options):
        heads = load(*arguments, **options)
        for parameter in heads[1].parameters():
            parameter.data.fill_(float("nan"))
        return heads

    monkeypatch.setattr(measuring, "load_each", broken)
    with pytest.raises(LofftaError, match=r"head of seed 1 gives no finite output(.|\n)*test/020.png"):
        evaluate(perfect[0], "test", cache=cache, device="cpu")
