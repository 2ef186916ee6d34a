"""The feed of a training online: what the network sees, in which order, under which surroundings; bad images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from loffta.errors import LofftaError, TooManyBadImages
from loffta.images.geometry import View, view_box
from loffta.runs.run import RunPaths
from loffta.training import fit
from tests.fakes import FakeBackbone, PngSource, picture
from tests.online.runs import TRAIN, N, config_of, log_of, run


def test_crops_are_drawn_from_the_datas_seed_epoch_and_key(tmp_path):
    """What the network saw in training are the views of the format's definition; the test images are whole."""
    seen = []

    class Noting(FakeBackbone):
        def __call__(self, pixels, taps):
            seen.append(pixels.permute(0, 2, 3, 1).numpy().copy())
            return super().__call__(pixels, taps)

    config = config_of(recipe={"epochs": 2, "batch_size": 15}, seeds=2, more={"data_seed": 3})
    run(config, tmp_path / "run", load=lambda _: Noting())
    resample = Image.Resampling.BICUBIC
    for epoch in range(2):
        order = np.random.Generator(np.random.PCG64([3, epoch])).permutation(15)
        for image, row in zip(seen[epoch], TRAIN[order], strict=True):
            whole = Image.fromarray(picture(row))
            box = view_box(View(3, epoch), f"{row:04d}.png", *whole.size)
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
    order = TRAIN[np.random.Generator(np.random.PCG64([0, 0])).permutation(15)]
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


def test_bad_images(tmp_path):
    found = run(config_of(max_bad_frac=0.5), tmp_path / "few", PngSource(N, {0: b"", 1: b"", 2: b""}))
    assert found["images"] == {"used": 4, "bad": 1}
    with pytest.raises(TooManyBadImages, match=r"3 of 15 images cannot be used; the first: 0001\.png"):
        run(config_of(), tmp_path / "many", PngSource(N, {1: b"", 2: b"", 3: b""}))
    assert not RunPaths(tmp_path / "many").results("test").exists()
    with pytest.raises(TooManyBadImages, match="1 of 5 images cannot be used"):
        run(config_of(), tmp_path / "tested", PngSource(N, {4: b""}))
    assert RunPaths(tmp_path / "tested").results("test").exists()


def test_a_batch_without_a_good_image_is_a_step_that_nothing_learns_from(tmp_path):
    """The order of the first epoch, of which the second batch is bad throughout."""
    order = TRAIN[np.random.Generator(np.random.PCG64([0, 0])).permutation(15)]
    broken = {int(row): b"" for row in order[4:8]}
    backbone = FakeBackbone()
    config = config_of(max_bad_frac=0.5, recipe={"epochs": 1}, augment="none")
    run(config, tmp_path / "run", PngSource(N, broken), load=lambda _: backbone)
    assert backbone.batches[:3] == [4, 4, 3]
    assert [(row["epoch"], row["step"]) for row in log_of(tmp_path / "run")] == [(0, 4)]


def test_no_image_that_can_be_used(tmp_path):
    config = config_of(max_bad_frac=1.0)
    with pytest.raises(LofftaError, match="none of 15 images can be used"):
        run(config, tmp_path / "run", PngSource(N, {int(row): b"" for row in TRAIN}))
    with pytest.raises(LofftaError, match="none of 5 images can be used"):
        run(config, tmp_path / "tested", PngSource(N, dict.fromkeys(range(0, N, 4), b"")))
    assert not RunPaths(tmp_path / "tested").results("test").exists()


def test_the_network_computes_as_in_an_extraction(tmp_path, monkeypatch):
    """A small head gets one thread, and in bf16 a coarser matmul: neither is for the network, whose head it is not."""
    seen, steps = [], []
    now = lambda: (torch.get_num_threads(), torch.get_float32_matmul_precision())  # noqa: E731
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setattr("loffta.machine.process.available_cpus", lambda: 2)
    step = fit._step
    monkeypatch.setattr(fit, "_step", lambda *a: steps.append(now()) or step(*a))
    torch.set_num_threads(2)
    load = lambda _: FakeBackbone(before=lambda _: seen.append(now()))  # noqa: E731
    run(config_of(recipe={"precision": "bf16"}), tmp_path / "run", load=load)
    assert set(seen) == {(2, "highest")}
    assert set(steps) == {(1, "medium")}
    assert now() == (2, "highest")
