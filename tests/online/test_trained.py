"""A backbone that is trained along: against a plain torch loop, with what it draws itself, and what it refuses."""

import json
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import DropPath

from loffta.errors import Stopped
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths, load_head
from loffta.training import fit as loop
from tests.fakes import picture
from tests.online.runs import TRAIN, TRAINED, N, assert_same_weights, config_of, log_of, run, timm_loader


def test_unfrozen_it_is_a_plain_torch_loop(tmp_path):
    """test_vit's class token behind its norm, BatchNorm without affine, a linear map, AdamW with two rates."""
    recipe = {"warmup_fraction": 0.0, "final_lr_factor": 1.0, "max_grad_norm": 0.5}
    config = config_of(**TRAINED, augment="none", recipe=recipe)
    run(config, tmp_path / "run")

    backbone = timm_loader(config.online.backbone)
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
        for rows in np.array_split(TRAIN[order], [4, 8, 12]):
            loss = F.cross_entropy(start(norm(model.forward_features(inputs[rows])[:, 0])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*start.parameters(), *model.parameters()], 0.5)
            optimizer.step()
            losses[-1].append(loss.item())
    paths = RunPaths(tmp_path / "run")
    logged = [row["loss"] for row in log_of(tmp_path / "run")]
    np.testing.assert_allclose(logged, [np.mean(epoch) for epoch in losses], rtol=1e-4)
    trained, last = load_head(paths.weights(0, "backbone")), model.state_dict()
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


def drops_paths(wanted):
    backbone = timm_loader(wanted)
    torch.manual_seed(1)
    for block in backbone.model.blocks:
        block.drop_path1 = DropPath(0.5).eval()
    return backbone


def test_what_a_network_draws_itself_depends_on_seed_and_step_alone(tmp_path, monkeypatch):
    """Neither on another seed beside it, nor on a stop, nor on what was drawn before; and it leaves nothing behind."""
    config = config_of(**TRAINED)
    run(config, tmp_path / "alone", load=drops_paths)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(1).get_state())
    run(config, tmp_path / "without")
    two = config.model_copy(update={"seeds": 2})
    stop, step, calls = StopFlag(), loop._step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 6:
            stop.signal = signal.SIGTERM
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(Stopped):
        run(two, tmp_path / "two", load=drops_paths, stop=stop)
    run(two, tmp_path / "two", load=drops_paths)
    for part in ("head", "backbone"):
        assert_same_weights(tmp_path / "alone", tmp_path / "two", 0, part)
        with pytest.raises(AssertionError):
            assert_same_weights(tmp_path / "alone", tmp_path / "without", 0, part)
