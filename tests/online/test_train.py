"""`train --online` against the cached training, against a plain torch loop, and against itself after a kill."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from loffta_cli.main import main
from PIL import Image
from safetensors.torch import load_file

from loffta.backbones.timm_backbone import load_timm
from loffta.config import BackboneConfig, OnlineConfig, TrainConfig
from loffta.errors import LofftaError, Stopped, TooManyBadImages, UsageError
from loffta.images.geometry import View, view_box
from loffta.machine.process import StopFlag
from loffta.online import fit as module
from loffta.online.train import train_online
from loffta.reporting.tables import read_runs
from loffta.runs.records import Epoch
from loffta.runs.run import RunPaths, load_head, read_lines
from loffta.training.train import train
from tests.fakes import FakeBackbone, PngSource, picture
from tests.online.runs import loader, make_fake_cache

N = 20
TRAIN = [row for row in range(N) if row % 4]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    torch.set_num_threads(1)  # as in the child: another number gives other last bits


def config_of(head="online-linear", *, name="fake", taps="blocks.1", seeds=1, recipe=None, px=16, **online):
    backbone = BackboneConfig(name=name, weights="random:0", image_px=px, taps=taps)
    return TrainConfig(
        cache=Path("fake:png"),
        head=head,
        seeds=seeds,
        device="cpu",
        recipe={"epochs": 2, "batch_size": 4, "lr": 0.01} | (recipe or {}),
        online=OnlineConfig(source="fake:png", backbone=backbone, **online),
    )


def run(config, out, source=None, *, load=None, stop=None):
    return train_online(config, out, source or PngSource(N), load or loader(), stop or StopFlag())


def assert_same_heads(one, other, seed):
    """Bit for bit; safetensors writes its tensors in any order."""
    a, b = (load_head(RunPaths(root).head(seed)) for root in (one, other))
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def log_of(out, seed):
    return [json.loads(line) for line in RunPaths(out).metrics(seed).read_text().splitlines()]


@pytest.mark.parametrize(
    ("head", "cached", "recipe", "taps"),
    [
        ("online-linear", "linear", {}, "blocks.1"),
        ("linear", "linear", {"class_weights": False}, "blocks.0,stages.2"),
        ("linear", "linear", {"precision": "bf16"}, "blocks.0"),
        ("combo", "combo", {"width": 8, "depth": 1, "relevance_weight": 0.01}, "all"),
    ],
)
def test_frozen_and_plain_it_is_the_cached_training(tmp_path, head, cached, recipe, taps):
    """float32 features, no crops: the same numbers on both ways, so the same heads."""
    recipe = {"epochs": 2, "batch_size": 4, "lr": 0.01} | recipe
    cache = make_fake_cache(tmp_path / "cache", dtype="float32")
    train_config = TrainConfig(
        cache=cache.paths.root, head=cached, features=(f"fake:{taps}",), seeds=2, device="cpu", recipe=recipe
    )
    expected = train(train_config, tmp_path / "cached", StopFlag())
    config = config_of(head, taps=taps, seeds=2, recipe=recipe, augment="none", pooling="mean")
    found = run(config, tmp_path / "online")
    for seed in range(2):
        a, b = (load_head(RunPaths(tmp_path / name).head(seed)) for name in ("cached", "online"))
        assert set(a) == set(b)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
        logs = [log_of(tmp_path / name, seed) for name in ("cached", "online")]
        np.testing.assert_allclose(*([row["loss"] for row in log] for log in logs), rtol=1e-4)
        assert [row["lr"] for row in logs[0]] == [row["lr"] for row in logs[1]]
    losses = [results["metrics"].pop("log_loss") for results in (found, expected)]
    assert losses[0]["per_seed"] == pytest.approx(losses[1]["per_seed"], rel=1e-4), "it has every digit of the logits"
    assert found["metrics"] == expected["metrics"]
    assert found["features"] == expected["features"]  # the very recipe hash
    assert (found["head"], found["n"], found["images"]) == (head, 5, {"used": 5, "bad": 0})
    assert set(expected) <= {*found, "relevance"}


def test_unfrozen_it_is_a_plain_torch_loop(tmp_path):
    """test_vit's class token behind its norm, BatchNorm without affine, a linear map, AdamW with two rates."""
    config = config_of(
        name="test_vit", taps="", px=32, unfrozen=True, lr_backbone=1e-3, augment="none",
        recipe={"warmup_fraction": 0.0, "final_lr_factor": 1.0, "max_grad_norm": 0.5},
    )  # fmt: skip
    load = lambda wanted: load_timm(wanted.name, weights=wanted.weights, image_px=wanted.image_px)  # noqa: E731
    run(config, tmp_path / "run", load=load)

    backbone = load(config.online.backbone)
    model, geometry = backbone.model.train().requires_grad_(True), backbone.geometry
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    pixels = [
        np.asarray(Image.fromarray(picture(i)).resize((32, 32), filters[geometry.interpolation])) for i in range(N)
    ]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    inputs = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 - mean) / std
    labels = torch.arange(N) % 3
    start = torch.nn.Linear(64, 3)
    torch.nn.init.trunc_normal_(start.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(start.bias)
    norm = torch.nn.BatchNorm1d(64, affine=False)
    split = lambda module, decays: [p for p in module.parameters() if (p.ndim > 1) == decays]  # noqa: E731
    optimizer = torch.optim.AdamW(
        [
            {"params": split(start, True), "lr": 0.01, "weight_decay": 1e-4},
            {"params": split(start, False), "lr": 0.01, "weight_decay": 0.0},
            {"params": split(model, True), "lr": 1e-3, "weight_decay": 1e-4},
            {"params": split(model, False), "lr": 1e-3, "weight_decay": 0.0},
        ]
    )
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = []
    for epoch in range(2):
        order = np.random.Generator(np.random.PCG64([0, epoch])).permutation(15)
        losses.append([])
        for rows in np.array_split(np.array(TRAIN)[order], [4, 8, 12]):
            loss = F.cross_entropy(start(norm(model.forward_features(inputs[rows])[:, 0])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*start.parameters(), *model.parameters()], 0.5)
            optimizer.step()
            losses[-1].append(loss.item())
    paths = RunPaths(tmp_path / "run")
    logged = [row.loss for row in read_lines(paths.metrics(0), Epoch)]
    np.testing.assert_allclose(logged, [np.mean(epoch) for epoch in losses], rtol=1e-4)
    trained, last = load_head(paths.backbone(0)), model.state_dict()
    moved = {name: _with_a_gradient(name, tensor - first[name]).norm().item() for name, tensor in last.items()}
    for name, tensor in last.items():
        assert _with_a_gradient(name, trained[name] - tensor).norm() <= 0.01 * moved[name], name
    assert {name for name, far in moved.items() if far == 0} == {"norm.bias", "head.weight", "head.bias"}
    torch.testing.assert_close(load_head(paths.head(0))["classify.weight"], start.weight.data, rtol=1e-3, atol=1e-5)
    seen = lambda: F.batch_norm(model.forward_features(inputs)[:, 0], None, None, training=True)  # noqa: E731
    with torch.no_grad():
        expected = seen()
        model.load_state_dict(trained)
        torch.testing.assert_close(seen(), expected, rtol=1e-3, atol=1e-3)
    results = json.loads(paths.results("test").read_text())
    assert results["features"][0]["label"] == "test_vit [random:0 weights] (trained, too)"
    assert results["features"][0]["taps"] == ["norm"]


def _with_a_gradient(name, tensor):
    """What is left of a parameter without that whose gradient is 0 by mathematics: rounding, which Adam makes steps of.

    BatchNorm takes the last norm's bias out again; the bias of a key adds one number to all scores of a query, which
    the softmax takes out again.
    """
    if name == "norm.bias":
        return tensor[:0]
    if name.endswith("qkv.bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor


def test_every_seed_starts_from_the_same_backbone(tmp_path):
    """Trained beside another seed, a seed is what it is alone; and the head of one is not the other's."""
    load = lambda wanted: load_timm(wanted.name, weights=wanted.weights, image_px=wanted.image_px)  # noqa: E731
    config = config_of(name="test_vit", taps="", px=32, unfrozen=True, lr_backbone=1e-3, seeds=2, recipe={"epochs": 1})
    run(config, tmp_path / "two", load=load)
    run(config.model_copy(update={"seeds": 1}), tmp_path / "one", load=load)
    one, two = (load_head(RunPaths(tmp_path / name).backbone(0)) for name in ("one", "two"))
    other = load_head(RunPaths(tmp_path / "two").backbone(1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(other[name], two[name]) for name in other)


def test_crops_are_drawn_from_seed_epoch_and_key(tmp_path):
    """What the network saw in training are the views of the format's definition; the test images are whole."""
    seen = []

    class Noting(FakeBackbone):
        def __call__(self, pixels, taps):
            seen.append(pixels.permute(0, 2, 3, 1).numpy().copy())
            return super().__call__(pixels, taps)

    run(config_of(recipe={"epochs": 2, "batch_size": 15}), tmp_path / "run", load=lambda _: Noting())
    resample = Image.Resampling.BICUBIC
    for epoch in range(2):
        order = np.random.Generator(np.random.PCG64([0, epoch])).permutation(15)
        for image, row in zip(seen[epoch], np.array(TRAIN)[order], strict=True):
            whole = Image.fromarray(picture(row))
            box = view_box(View(0, epoch), f"{row:04d}.png", *whole.size)
            square = whole.crop(box[:4]).resize((16, 16), resample)
            expected = np.asarray(square)[:, ::-1] if box.mirrored else np.asarray(square)
            np.testing.assert_array_equal(image, expected)
    for image, row in zip(seen[2], range(0, N, 4), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.fromarray(picture(row)).resize((16, 16), resample)))


def test_class_weights_are_torchs(tmp_path):
    """One batch of everything: the logged loss is that of the untrained head."""
    source = PngSource(N)
    listing = source.listing()
    labels = np.array([0, 0, 0, 1, 2] * 4)
    source.listing = lambda: replace(listing, labels=labels)
    recipe = {"epochs": 1, "batch_size": 99, "class_weights": True}
    run(config_of(recipe=recipe, augment="none", pooling="mean"), tmp_path / "run", source)
    (row,) = log_of(tmp_path / "run", 0)
    backbone = FakeBackbone()
    order = np.array(TRAIN)[np.random.Generator(np.random.PCG64([0, 0])).permutation(15)]
    squares = [np.asarray(Image.fromarray(picture(i)).resize((16, 16), Image.Resampling.BICUBIC)) for i in order]
    tokens = backbone(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), ["blocks.1"])["blocks.1"]
    vectors = F.batch_norm(tokens.grid.mean(dim=(1, 2)), None, None, training=True)
    weight = torch.empty(3, 6)
    torch.nn.init.trunc_normal_(weight, std=0.01, generator=torch.Generator().manual_seed(0))
    counts = np.bincount(labels[TRAIN])
    loss = F.cross_entropy(
        vectors @ weight.T, torch.from_numpy(labels[order]), weight=torch.tensor(15 / (3 * counts)).float()
    )
    assert row["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_a_stopped_training_ends_as_it_would_have(tmp_path):
    config = config_of(seeds=2, recipe={"epochs": 3})
    expected = run(config, tmp_path / "whole")
    stops = 0
    for _ in range(20):
        stop = StopFlag()

        def interrupt(backbone, stop=stop):
            if len(backbone.batches) == 6:  # in every second epoch of four batches
                stop.signal = signal.SIGTERM

        try:
            found = run(config, tmp_path / "stopped", load=lambda _: FakeBackbone(before=interrupt), stop=stop)
        except Stopped:
            stops += 1
        else:
            break
    assert stops >= 3
    assert found["metrics"] == expected["metrics"]
    paths = [RunPaths(tmp_path / name) for name in ("whole", "stopped")]
    for seed in range(2):
        assert_same_heads(tmp_path / "whole", tmp_path / "stopped", seed)
        assert not paths[1].online_checkpoint(seed).exists()
    assert run(config, tmp_path / "stopped", load=None) == json.loads(paths[1].results("test").read_text())


def stop_in_the_second_epoch(out):
    """A training of four batches an epoch; gives its checkpoint."""
    stop = StopFlag()

    def interrupt(backbone):
        if len(backbone.batches) == 6:
            stop.signal = signal.SIGTERM

    with pytest.raises(Stopped):
        run(config_of(), out, load=lambda _: FakeBackbone(before=interrupt), stop=stop)
    return RunPaths(out).online_checkpoint(0)


def test_other_images_are_not_trained_on_in_the_same_run(tmp_path):
    checkpoint = stop_in_the_second_epoch(tmp_path / "run")
    before = checkpoint.read_bytes()
    with pytest.raises(LofftaError, match=r"another configuration(.|\n)*online.images_digest"):
        run(config_of(), tmp_path / "run", PngSource(N + 4))
    assert checkpoint.read_bytes() == before


def test_another_network_is_not_trained_on_in_the_same_run(tmp_path):
    checkpoint = stop_in_the_second_epoch(tmp_path / "run")
    before = checkpoint.read_bytes()

    with pytest.raises(LofftaError, match=r"another configuration(.|\n)*online.backbone_hash"):
        run(config_of(), tmp_path / "run", load=lambda _: FakeBackbone(seed=1))
    assert checkpoint.read_bytes() == before


def test_a_killed_process_ends_as_it_would_have(tmp_path):
    from tests.online.child import config

    run(config(), tmp_path / "whole")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(Path(__file__).parent / "child.py"), str(tmp_path / "killed")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    for n_lines, _ in enumerate(child.stdout, start=1):
        if n_lines == 7:  # in the second epoch of four batches
            child.kill()
    _, error = child.communicate()
    assert child.returncode == -signal.SIGKILL, error.decode()
    assert RunPaths(tmp_path / "killed").online_checkpoint(0).exists()
    batches = []  # those of the second process, which is this one
    run(config(), tmp_path / "killed", load=lambda _: FakeBackbone(before=lambda _: batches.append(1)))
    n_whole = 2 * 4 * 4 + 2  # seeds, epochs, batches; the test images
    assert len(batches) == n_whole - 4
    for seed in range(2):
        assert_same_heads(tmp_path / "whole", tmp_path / "killed", seed)


def test_a_checkpoint_that_cannot_be_continued(tmp_path):
    checkpoint = stop_in_the_second_epoch(tmp_path / "run")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    with pytest.raises(LofftaError, match=r"checkpoint is damaged(.|\n)*delete this file") as caught:
        run(config_of(), tmp_path / "run")
    assert caught.value.where == str(checkpoint)
    with pytest.raises(LofftaError, match=r"made with another configuration:\n    recipe.lr: 0.01 -> 0.02"):
        run(config_of(recipe={"lr": 0.02}), tmp_path / "run")


def test_bad_images(tmp_path):
    found = run(config_of(max_bad_frac=0.5), tmp_path / "few", PngSource(N, {0: b"", 1: b"", 2: b""}))
    assert found["images"] == {"used": 4, "bad": 1}
    with pytest.raises(TooManyBadImages, match=r"3 of 15 images cannot be used; the first: 0001\.png"):
        run(config_of(), tmp_path / "many", PngSource(N, {1: b"", 2: b"", 3: b""}))
    assert not RunPaths(tmp_path / "many").results("test").exists()
    with pytest.raises(TooManyBadImages, match="1 of 5 images cannot be used"):
        run(config_of(), tmp_path / "tested", PngSource(N, {4: b""}))
    assert RunPaths(tmp_path / "tested").results("test").exists()


@pytest.mark.parametrize("at", [1, 9])  # in training; behind its two epochs of four batches, in the test
def test_memory_that_is_not_enough(tmp_path, at):
    def full(backbone):
        if len(backbone.batches) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    with pytest.raises(LofftaError, match=r"memory of cpu is not enough \(CUDA out(.|\n)*--image-px") as caught:
        run(config_of(), tmp_path / "run", load=lambda _: FakeBackbone(before=full))
    assert caught.value.where == str(tmp_path / "run")
    run(config_of(), tmp_path / "run")


def test_a_loss_that_is_not_finite_names_images(tmp_path):
    backbone = FakeBackbone()
    backbone.matrices["blocks.1"] = backbone.matrices["blocks.1"] * float("nan")
    with pytest.raises(LofftaError, match=r"loss of seed 0 is not finite at step 0\n  where:  images 00\d\d.png, "):
        run(config_of(pooling="mean"), tmp_path / "run", load=lambda _: backbone)
    assert "is not finite at step 0; images of that step: 00" in RunPaths(tmp_path / "run").log.read_text()


@pytest.mark.parametrize("unfrozen", [False, True])
@pytest.mark.parametrize("last", [8, 12])
def test_weights_that_are_no_numbers_replace_no_good_ones(tmp_path, monkeypatch, unfrozen, last):
    """The last step of an epoch, or of all, spoils the weights; its loss was still a number."""
    load = lambda wanted: load_timm(wanted.name, weights=wanted.weights, image_px=wanted.image_px)  # noqa: E731
    config = config_of(name="test_vit", taps="", px=32, unfrozen=unfrozen, recipe={"epochs": 3})
    run(config, tmp_path / "whole", load=load)
    step, calls = module._step, []

    def spoil(setting, member, *rest):
        loss = step(setting, member, *rest)
        calls.append(1)
        if len(calls) == last:
            next(member.modules["backbone" if unfrozen else "head"].parameters()).data.view(-1)[0] = float("nan")
        return loss

    monkeypatch.setattr(module, "_step", spoil)
    with pytest.raises(LofftaError, match=f"loss of seed 0 is not finite at step {last - 1}\n  where:  the last step"):
        run(config, tmp_path / "run", load=load)
    paths = RunPaths(tmp_path / "run")
    assert not paths.head(0).exists()
    assert all(tensor.isfinite().all() for tensor in load_file(paths.online_checkpoint(0)).values())
    monkeypatch.setattr(module, "_step", step)
    run(config, tmp_path / "run", load=load)
    assert_same_heads(tmp_path / "whole", tmp_path / "run", 0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of(taps="stages.2", pooling="class"), "fake has no class token"),
        (config_of(taps="all"), "online-linear takes one tap"),
        (config_of(unfrozen=True), "fake is no timm model and cannot be trained"),
        (config_of("comboo"), "unknown head 'comboo'"),
        (config_of("combo", taps="blocks.7"), "unknown tap 'blocks.7'"),
        (config_of().model_copy(update={"train_on": "tran"}), "unknown split 'tran'"),
        (config_of("head2toe", taps="all"), "trains in several phases"),
        *(
            (config_of().model_copy(update={name: value}), f"--{name.replace('_', '-')} is for training on a cache")
            for name, value in {
                "features": ("fake",),
                "validate_on": "train",
                "holdout": 0.2,
                "augment": "loff-ta",
                "search": True,
                "select": 1,
                "feed": "host",
                "order": "windowed",
                "checkpoint_s": 1.0,
                "partial": True,
            }.items()
        ),
    ],
)
def test_mistakes(tmp_path, config, words):
    with pytest.raises(UsageError, match=words):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Registers(FakeBackbone):
    """Its prefix tokens are registers alone, as NaFlex has them."""

    def __init__(self):
        super().__init__()
        self.specs = tuple(replace(spec, registers_only=spec.n_prefix > 0) for spec in self.specs)


def test_registers_are_no_class_token(tmp_path):
    found = run(config_of(augment="none"), tmp_path / "auto", load=lambda _: Registers())
    mean = run(config_of(augment="none", pooling="mean"), tmp_path / "mean")
    assert found["metrics"] == mean["metrics"]
    assert_same_heads(tmp_path / "auto", tmp_path / "mean", 0)
    with pytest.raises(UsageError, match="fake has no class token"):
        run(config_of(pooling="class"), tmp_path / "class", load=lambda _: Registers())
    with pytest.raises(UsageError, match="no class token: its prefix tokens are registers"):
        run(config_of("linear", recipe={"pooling": "cls"}), tmp_path / "cls", load=lambda _: Registers())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--online", "demo:digits"], "--online needs a backbone"),
        (["--backbone", "test_vit"], "--backbone is for training without a cache"),
        (["cache", "--follow-links"], "--follow-links is for training without a cache"),
        (["cache", "--online", "demo:digits"], "exclude each other"),
        (["--online", "demo:digits", "--backbone", "test_vit", "--lr-backbone", "1e-3"], "add --unfrozen"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, options, words):
    assert main(["train", "--out", str(tmp_path / "run"), *options]) == 2
    assert words in capsys.readouterr().err


def test_no_bad_image_at_all_can_be_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("loffta.images.sources.open_source", lambda _: PngSource(N, {1: b""}))
    monkeypatch.setattr("loffta.extraction.begin.backbone_loader", lambda _: loader())
    words = ["train", "--online", "fake:png", "--backbone", "fake", "--weights", "random:0", "--image-px", "16"]
    words += ["--taps", "blocks.0", "--set", "epochs=1", "--device", "cpu", "--max-bad-frac", "0"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 3
    assert "1 of 15 images cannot be used" in capsys.readouterr().err
    assert yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())["online"]["max_bad_frac"] == 0


def test_the_command_and_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("loffta.images.sources.open_source", lambda _: PngSource(N))
    monkeypatch.setattr("loffta.extraction.begin.backbone_loader", lambda _: loader())
    out = tmp_path / "run"
    words = ["train", "--online", "table:x", "--image-root", "/y", "--backbone", "fake", "--weights", "random:0"]
    words += [
        "--image-px",
        "16",
        "--taps",
        "blocks.0",
        "--pooling",
        "mean",
        "--augment-images",
        "none",
        "--max-bad-frac",
        "0.2",
    ]
    words += ["--out", str(out), "--set", "epochs=1", "--seeds", "2", "--device", "cpu", "--json"]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = yaml.safe_load(RunPaths(out).config.read_text())
    backbone = {"name": "fake", "weights": "random:0", "taps": "blocks.0", "image_px": 16}
    assert config["online"] == {
        "source": "table:x#root=/y", "backbone": backbone, "unfrozen": False, "pooling": "mean", "resize": "squash",
        "augment": "none", "lr_backbone": 1e-5, "max_bad_frac": 0.2, "images_digest": PngSource(N).listing().digest,
        "backbone_hash": results["features"][0]["recipe_hash"], "background": "#ffffff", "range": "auto",
    }  # fmt: skip
    (row,) = (run.row for run in read_runs([out]))
    assert (row.head, row.taps, row.n_seeds) == ("online-linear", {"fake [random:0 weights]": ("blocks.0",)}, 2)
    assert main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == results
    assert main(["evaluate", str(out), "--split", "train"]) == 2
    assert "was trained online, and measured on split 'test'" in capsys.readouterr().err
    assert main(["predict", str(out), str(tmp_path), "--out", str(tmp_path / "p.parquet"), "--device", "cpu"]) == 1
    assert "this run was trained online" in capsys.readouterr().err
