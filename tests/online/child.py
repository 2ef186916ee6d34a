"""`train --online` in a process that a test can kill: prints `batch` ahead of every forward pass."""

import os
import sys
from pathlib import Path

import torch

from loffta.config import BackboneConfig, OnlineConfig, TrainConfig
from loffta.errors import LofftaError
from loffta.machine.process import StopFlag
from loffta.online.train import train_online
from tests.fakes import FakeBackbone, PngSource


def config(**recipe):
    backbone = BackboneConfig(name="fake", weights="random:0", image_px=16, taps="blocks.1")
    online = OnlineConfig(source="fake:png", backbone=backbone)
    recipe = {"epochs": 4, "batch_size": 4, "lr": 0.1} | recipe
    values = {"head": "online-linear", "seeds": 2, "device": "cpu", "checkpoint_s": 1e-3}
    return TrainConfig(cache=Path("fake:png"), recipe=recipe, online=online, **values)


def main(out):
    torch.set_num_threads(1)
    said = lambda _: os.write(sys.stdout.fileno(), b"batch\n")  # noqa: E731
    backbone = FakeBackbone(delay_s=0.02, before=said)
    try:
        train_online(config(), out, PngSource(20), lambda _: backbone, StopFlag().listen())
    except LofftaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
