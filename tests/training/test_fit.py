"""The loop against one written by hand; augmentation, precision, and losses that are no numbers."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loffta import augment
from loffta.config import TrainConfig
from loffta.dataset.features import choose_features
from loffta.errors import LofftaError
from loffta.heads import build_head
from loffta.heads.precision import uses_bf16
from loffta.machine.process import StopFlag
from loffta.runs.claims import take
from loffta.runs.run import RunLog, RunPaths
from loffta.store.zarr_reader import open_array
from loffta.training import fit as loop
from loffta.training.cached import CachedSupply
from loffta.training.fit import Session, fit
from loffta.training.loss import Mix
from loffta.training.optim import lr_at, parameter_groups
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable, toy_cache
from tests.training.noisyhead import NoisyRecipe, use_noisy_head

N_TRAIN = 40


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    use_noisy_head(monkeypatch)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


def make_session(cache, out, **changes):
    config = TrainConfig(cache=cache.paths.root, head="noisy", task="classification", device="cpu", **changes)
    features = choose_features(cache, (), ("mean",), default_taps="all")
    out.mkdir()
    paths = RunPaths(out)
    supply = CachedSupply(config, cache, features)
    return Session(config, supply, torch.device("cpu"), paths, RunLog(paths.log), StopFlag(), take(paths))


def go(session, recipe, *, n_seeds=2, **options):
    rows = np.arange(N_TRAIN)
    members = [session.member(recipe, seed) for seed in range(n_seeds)]
    with session.feed(rows, recipe) as feed:
        fit(session, feed, members, session.keeper("test", feed, members), title="test", **options)
    return members


def by_hand(session, recipe, seed):
    """No feed, no members: every step spelt out; clipping and weighting by their formulas or torch's own."""
    labels = torch.tensor(session.supply.cache.table.labels[:N_TRAIN])
    features, rows = session.supply.features, np.arange(N_TRAIN)
    inputs = [f.finish(torch.from_numpy(open_array(f.array.paths).read(rows))) for f in features]
    counts = torch.tensor([(labels == c).sum() for c in range(3)])
    weight = N_TRAIN / (3 * counts) if recipe.class_weights else None
    head = build_head("noisy", [f.spec for f in features], 3, recipe, seed)
    rng = torch.Generator().manual_seed(seed)
    total = recipe.epochs * math.ceil(N_TRAIN / recipe.batch_size)
    for phase in range(2):
        if phase:
            head.start_phase(1, torch.Generator().manual_seed(seed + 2**32))
        optimizer = torch.optim.AdamW(parameter_groups(head, recipe.weight_decay), lr=1.0)
        step = 0
        for epoch in range(recipe.epochs):
            drawn = phase if recipe.same_batches else phase * recipe.epochs + epoch
            order = np.random.Generator(np.random.PCG64([0, drawn])).permutation(N_TRAIN)
            for first in range(0, N_TRAIN, recipe.batch_size):
                rows = order[first : first + recipe.batch_size]
                logits = head(head.prepare([tensor[rows] for tensor in inputs]), rng)
                loss = torch.nn.CrossEntropyLoss(weight=weight)(logits, labels[rows])
                if head.penalty() is not None:
                    loss = loss + head.penalty()
                if recipe.divide_by_whole_batch:  # sums over 16 images, of 8 in the last batch
                    loss = loss * len(rows) / 16
                optimizer.zero_grad()
                loss.backward()
                norm = torch.sqrt(sum((p.grad**2).sum() for p in head.parameters()))
                if recipe.max_grad_norm is not None and norm > recipe.max_grad_norm:
                    for parameter in head.parameters():
                        parameter.grad *= recipe.max_grad_norm / norm
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(step, total, recipe)
                    if recipe.adam == "keras":
                        group["eps"] = 1e-7 / math.sqrt(1 - 0.999 ** (step + 1))
                optimizer.step()
                step += 1
    return head


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_grad_norm": 0.05},
        {"class_weights": True, "final_lr": 1e-3, "warmup_fraction": 0.0},
        {"same_batches": True, "divide_by_whole_batch": True, "adam": "keras"},
    ],
)
def test_two_phases_equal_a_loop_by_hand(cache, tmp_path, changes):
    recipe = NoisyRecipe(**changes)
    session = make_session(cache, tmp_path / "run")
    members = go(session, recipe)
    for member in members:
        expected = by_hand(session, recipe, member.seed)
        assert torch.equal(member.head.keep, expected.keep)
        assert 0 < member.head.keep.sum() < len(member.head.keep)
        torch.testing.assert_close(member.head.classify.weight, expected.classify.weight, atol=1e-5, rtol=1e-4)
    assert [row["epoch"] for row in members[0].log] == [0, 1, 2, 3]
    assert [row["step"] for row in members[0].log] == [3, 6, 9, 12]
    assert members[0].log[3]["lr"] == lr_at(5, 6, recipe)


def test_settings_side_by_side_equal_settings_alone(cache, tmp_path):
    recipes = [NoisyRecipe(lr=lr, weight_decay=decay) for lr in (1e-3, 0.1) for decay in (0.0, 0.5)]
    session = make_session(cache, tmp_path / "run")
    rows = np.arange(N_TRAIN)
    together = [session.member(recipe, 3) for recipe in recipes]
    with session.feed(rows, recipes[0]) as feed:
        fit(session, feed, together, session.keeper("all", feed, together), title="all")
        for recipe, member in zip(recipes, together, strict=True):
            alone = [session.member(recipe, 3)]
            fit(session, feed, alone, session.keeper("one", feed, alone), title="one")
            assert torch.equal(alone[0].head.classify.weight, member.head.classify.weight)
            assert alone[0].log == member.log


def test_augmentation_is_each_members_own(cache, tmp_path):
    recipe = NoisyRecipe(epochs=1, noise=0.0)
    sessions = {name: make_session(cache, tmp_path / name) for name in ("plain", "same", "moved")}
    plain = go(sessions["plain"], recipe)
    vars(sessions["same"])["augment"] = lambda features, targets, rng: (features, targets, None)
    same = go(sessions["same"], recipe)
    seen = []

    def noisy(features, targets, rng):
        draw = torch.rand(len(features[0]), generator=rng)
        seen.append(draw[:2].tolist())
        moved = [f + draw.view(-1, *[1] * (f.ndim - 1)) for f in features]
        return moved, targets, Mix(torch.arange(len(draw)).flip(0), draw)

    vars(sessions["moved"])["augment"] = noisy
    moved = go(sessions["moved"], recipe)
    for one, other, third in zip(plain, same, moved, strict=True):
        assert torch.equal(one.head.classify.weight, other.head.classify.weight)
        assert not torch.equal(one.head.classify.weight, third.head.classify.weight)
    expected = [torch.rand(16, generator=torch.Generator().manual_seed(seed))[:2].tolist() for seed in range(2)]
    assert seen[:2] == expected


def test_matmul_precision_is_medium_in_bf16_alone(cache, tmp_path, monkeypatch):
    seen, step = [], loop._step

    def spy(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        if len(seen) == 20:
            raise RuntimeError("broken")
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", spy)
    for precision in ("fp32", "bf16"):
        before = torch.get_float32_matmul_precision()
        recipe = NoisyRecipe(epochs=1, precision=precision)
        if precision == "fp32":
            go(make_session(cache, tmp_path / precision), recipe)
            assert set(seen) == {before}
        else:
            with pytest.raises(RuntimeError, match="broken"):
                go(make_session(cache, tmp_path / precision), recipe)
            assert seen[-1] == "medium"
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("native", [False, True])
def test_bf16_is_the_default_on_gpus_that_are_made_for_it(monkeypatch, native):
    """Older ones emulate it, slowly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native or including_emulation)
    device = torch.device("cuda")
    assert uses_bf16(NoisyRecipe(), device) == native
    assert uses_bf16(NoisyRecipe(precision="bf16"), device)
    assert not uses_bf16(NoisyRecipe(precision="fp32"), device)
    assert not uses_bf16(NoisyRecipe(), torch.device("cpu"))


def test_weights_that_are_no_numbers_after_the_last_step(cache, tmp_path, monkeypatch):
    step, calls = loop._step, []

    def spoil(member, *rest):
        loss = step(member, *rest)
        calls.append(1)
        if len(calls) == 12:
            member.head.classify.weight.data[0, 0] = math.inf
        return loss

    monkeypatch.setattr(loop, "_step", spoil)
    with pytest.raises(LofftaError, match=r"loss of seed 0 is not finite at step 11 \(lr 0.01, weight decay 0.01\)"):
        go(make_session(cache, tmp_path / "run"), NoisyRecipe(), n_seeds=1)


def test_two_phases_through_train_and_evaluate(cache, tmp_path):
    config = TrainConfig(cache=cache.paths.root, head="noisy", device="cpu", recipe={"epochs": 20, "lr": 0.1})
    results = train(config, tmp_path / "run", StopFlag())
    assert results["metrics"]["top1"]["mean"] == 1
    assert 0 < load_file(RunPaths(tmp_path / "run").head(0))["keep"].mean() < 1


def test_batches_and_steps_that_a_recipe_asks_for(cache, tmp_path, capsys):
    recipe = {"batch_size": 2048, "epochs": 2, "min_batches": 5, "min_steps": 17}
    config = TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe)
    train(config, tmp_path / "run", StopFlag())
    log = [json.loads(line) for line in RunPaths(tmp_path / "run").metrics(0).read_text().splitlines()]
    assert [row["step"] for row in log] == [5, 10, 15, 20]
    assert "linear: 4 epochs of batches of 8, for this many images" in capsys.readouterr().err
    made = json.loads(RunPaths(tmp_path / "run").training.read_text())
    assert (made["epochs"], made["batch_size"]) == (4, 8)


@pytest.mark.parametrize("n_absent", [1, 7])
def test_classes_without_an_image_are_named(tmp_path, capsys, n_absent):
    labels, grids = separable(30)
    classes = (*"abc", *(f"rare {i}" for i in range(n_absent)))
    table = make_table(labels, ["train"] * 20 + ["test"] * 10, classes=classes)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids})])
    recipe = {"epochs": 1, "class_weights": True}
    config = TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe)
    train(config, tmp_path / "run", StopFlag())
    named = "class rare 0" if n_absent == 1 else "7 classes (rare 0, rare 1, rare 2, rare 3, rare 4, ...)"
    line = f"no image to train on of {named}: the head cannot learn what is not there"
    assert line in capsys.readouterr().err
    assert line in RunPaths(tmp_path / "run").log.read_text()
    assert all(t.isfinite().all() for t in load_file(RunPaths(tmp_path / "run").head(0)).values())


def test_presets_and_their_settings_reach_the_features(cache, tmp_path):
    recipe = NoisyRecipe(epochs=1, noise=0.0)
    plain = go(make_session(cache, tmp_path / "plain", augment="none"), recipe)
    drawn = [go(make_session(cache, tmp_path / name, augment="loff-ta"), recipe) for name in ("one", "again")]
    mixed = go(make_session(cache, tmp_path / "mixed", augment={"preset": "none", "mixup_alpha": 0.4}), recipe)
    for seed in range(2):
        weights = [members[seed].head.classify.weight for members in (plain, *drawn, mixed)]
        assert torch.equal(weights[1], weights[2])
        assert not torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[3])


def test_augmentation_equals_its_own_functions(cache, tmp_path):
    """What a session does to a batch is `draw` with the member's generator, then `apply`; mixing goes to the loss."""
    settings = augment.from_preset("loff-ta", {"mixup_alpha": 1.0})
    session = make_session(cache, tmp_path / "run", augment=augment.words(settings))
    batch = [torch.randn(5, len(f.spec.taps), *f.spec.shape) for f in session.supply.features]
    labels = torch.arange(5)
    found, moved, mix = session.augment(batch, labels, torch.Generator().manual_seed(3))
    assert moved is labels, "an image that is moved is of the same class"
    drawn = augment.draw(settings, 5, torch.Generator().manual_seed(3), torch.device("cpu"))
    for one, other in zip(found, augment.apply(batch, [f.spec for f in session.supply.features], drawn), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(mix.partner, drawn.partner)
    assert torch.equal(mix.weight, drawn.weight)
