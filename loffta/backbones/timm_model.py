"""Builds a timm model and gives it its weights, whatever their source.

In: a model's name and the form of `--weights`.   Out: the model, before any resampling, and the source of its weights.
Called by `timm_backbone`.
"""

from __future__ import annotations

import threading
from typing import Any

import timm
import torch
from timm.models import _builder
from torch import nn

from loffta.backbones import WeightsSource
from loffta.backbones.checkpoint import Convert, Loaded, load_checkpoint
from loffta.backbones.weights import (
    digest_state_dict,
    find_file,
    random_seed,
    split_adapter,
    split_part,
    stamp,
    stamp_adapter,
)

_ALONE = threading.Lock()  # two threads would draw from one generator, and replace timm's loader under each other


def build_model(name: str, spec: str) -> tuple[nn.Module, WeightsSource, Loaded]:
    """A model with its weights, where they came from, and what there is to say of them.

    The global RNG stays as it was; the models of several threads are built one after the other.
    """
    base, adapter = split_adapter(spec)
    seed = random_seed(base)
    path = None if seed is not None else find_file(base, name)
    file, adapter_file = stamp(path), stamp_adapter(adapter)
    with _ALONE, torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.default_generator.manual_seed(seed or 0)  # torch.manual_seed would touch the accelerators' too
        model, convert, strict = _create(name, pretrained=path is not None)
        loaded = Loaded()
        if path is not None:
            loaded = load_checkpoint(model, path, convert, strict=strict, part=split_part(base)[1])
        if adapter is not None:
            from loffta.backbones.adapters import merge_adapter  # peft takes seconds to import

            model = merge_adapter(model, adapter)
    return model, WeightsSource(spec, digest_state_dict(model.state_dict()), *file, adapter_file), loaded


def _create(name: str, *, pretrained: bool) -> tuple[nn.Module, Convert | None, bool]:
    """A timm model without weights; the filter, and the strictness, with which its family would read them.

    A family gives both to timm's loader and to nobody else, so that loader is replaced for this one call.
    """
    loader: Any = _builder
    asked: list[tuple[Convert | None, bool]] = []

    def load(_model: Any, *_args: Any, filter_fn: Convert | None = None, strict: bool = True, **_options: Any) -> None:
        asked.append((filter_fn, strict))

    original, loader.load_pretrained = loader.load_pretrained, load
    try:
        model = timm.create_model(name, pretrained=pretrained)
    finally:
        loader.load_pretrained = original
    return (model, *(asked[0] if asked else (None, True)))
