"""Caches of generated pictures by a fake backbone, finished runs on them, and trainings online of the same pictures."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from loffta.config import BackboneConfig, OnlineConfig, TrainConfig
from loffta.errors import Stopped
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.online.train import train_online
from loffta.runs.run import RunPaths, load_head
from loffta.store.cache import Cache
from loffta.training.train import train
from tests.fakes import FakeBackbone, PngSource, fake_config

N = 20
TRAIN = np.array([row for row in range(N) if row % 4])
CPU = torch.device("cpu")
# options of a training of test_vit together with its head
TRAINED = {"name": "test_vit", "taps": "", "px": 32, "unfrozen": True, "lr_backbone": 1e-3}


def loader(loaded=None):
    """Makes FakeBackbones by name, weights by the name's digits; notes what was asked for."""

    def load(wanted):
        if loaded is not None:
            loaded.append(wanted.name)
        return FakeBackbone(wanted.name, seed=int(wanted.name.removeprefix("fake") or 0))

    return load


def timm_loader(wanted):
    """Of a tiny timm network."""
    from loffta.backbones.timm_backbone import load_timm  # 5 s, which most tests need not pay

    return load_timm(wanted.name, weights=wanted.weights, image_px=wanted.image_px)


def make_fake_cache(root, *, names=("fake",), broken=None, **options):
    config = fake_config(root, names=names, max_bad_frac=1.0, **options)
    extract(config, PngSource(N, broken), loader(), StopFlag())
    return Cache.open(root)


def make_run(cache, out, *, head="linear", features=(), seeds=2, search=False, **recipe):
    config = TrainConfig(
        cache=cache.paths.root,
        head=head,
        features=features,
        seeds=seeds,
        search=search,
        device="cpu",
        recipe={"epochs": 2, "batch_size": 8} | recipe,
    )
    train(config, out, StopFlag())
    return out


def config_of(head="online-linear", *, name="fake", taps="blocks.1", seeds=1, recipe=None, px=16, more=None, **online):
    """A training online of two epochs of four batches; `more` of TrainConfig, `online` of OnlineConfig."""
    backbone = BackboneConfig(name=name, weights="random:0", image_px=px, taps=taps)
    return TrainConfig(
        cache=Path("fake:png"),
        head=head,
        seeds=seeds,
        device="cpu",
        recipe={"epochs": 2, "batch_size": 4, "lr": 0.01} | (recipe or {}),
        online=OnlineConfig(source="fake:png", backbone=backbone, **online),
        **(more or {}),
    )


def run(config, out, source=None, *, load=None, stop=None):
    if load is None:
        load = timm_loader if config.online.backbone.name == "test_vit" else loader()
    return train_online(config, out, source or PngSource(N), load, stop or StopFlag())


def stop_at_batch(number, config, out, source=None):
    """A training that a signal stops at this batch of its network; gives what its checkpoint says."""
    stop = StopFlag()

    def interrupt(backbone):
        if len(backbone.batches) == number:
            stop.signal = signal.SIGTERM

    with pytest.raises(Stopped):
        run(config, out, source, load=lambda _: FakeBackbone(before=interrupt), stop=stop)
    return RunPaths(out).checkpoint


def assert_same_weights(one, other, seed, part="head", *, seed_there=None):
    """Bit for bit; safetensors writes its tensors in any order."""
    seed_there = seed if seed_there is None else seed_there
    a, b = (load_head(RunPaths(at).weights(s, part)) for at, s in ((one, seed), (other, seed_there)))
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def log_of(out, seed=0):
    return [json.loads(line) for line in RunPaths(out).metrics(seed).read_text().splitlines()]
