"""Runs of dense heads on caches of generated pictures with targets, and the pictures' source."""

from dataclasses import replace

import numpy as np

from loffta.config import TrainConfig
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.targets import IGNORE_16
from loffta.training.train import train
from tests.fakes import DenseSource, fake_config
from tests.online.runs import loader

N, PX = 20, 16
SHORT = {"epochs": 2, "min_steps": None, "batch_size": 8, "output_px": PX, "lr": 0.01}


class Pictures(DenseSource):
    """Objects are 1, 2 and 3, so that no number is left out."""

    def target(self, kind, i):
        found = super().target(kind, i)
        if kind != "instances":
            return found
        return replace(found, map=np.where(found.map == IGNORE_16, found.map, found.map % 4).astype(np.uint16))


def dense_cache(root, kinds=("mask",), broken=None, **options):
    """Pictures of 10 to 39 pixels a side, some of whose targets are missing where `broken` says so."""
    config = fake_config(root, targets=kinds, target_px=PX, max_bad_frac=1.0, kinds=("grid",), **options)
    extract(config, Pictures(N, broken), loader(), StopFlag())
    return Cache.open(root)


def dense_run(cache, out, task="segmentation", head="dense-linear", seeds=1, **recipe):
    config = TrainConfig(cache=cache.paths.root, head=head, task=task, seeds=seeds, device="cpu", recipe=SHORT | recipe)
    train(config, out, StopFlag())
    return out
