"""Caches of generated pictures by a fake backbone and finished runs on them: rivals of the online twins."""

import torch

from loffta.config import TrainConfig
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.training.train import train
from tests.fakes import FakeBackbone, PngSource, fake_config

N = 20
CPU = torch.device("cpu")


def loader(loaded=None):
    """Makes FakeBackbones by name, weights by the name's digits; notes what was asked for."""

    def load(wanted):
        if loaded is not None:
            loaded.append(wanted.name)
        return FakeBackbone(wanted.name, seed=int(wanted.name.removeprefix("fake") or 0))

    return load


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
