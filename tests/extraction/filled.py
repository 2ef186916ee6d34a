"""Extractions with fakes, and what they left."""

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from tests.fakes import FakeBackbone, PngSource, fake_config

N = 20  # two and a half units


def fill(cache, source=None, backbone=None, stop=None, **options):
    """One extraction with fakes; `backbone` is one for all names, or a dict."""
    only = options.pop("only", None)
    by_name = backbone if isinstance(backbone, dict) else {}
    fallback = None if by_name else backbone or FakeBackbone()
    load = lambda wanted: by_name.get(wanted.name, fallback)  # noqa: E731
    return extract(fake_config(cache, **options), source or PngSource(N), load, stop or StopFlag(), only=only)


def refuse_to_load(wanted):
    pytest.fail("a model was loaded")


def read_array(cache, kind, tap, backbone="fake"):
    """[n, ...] of one tap through zarr-python."""
    for metadata in cache.glob(f"stores/{backbone}-*/{kind}-*/zarr.json"):
        array = zarr.open_array(store=metadata.parent, mode="r")
        if tap in array.attrs["taps"]:
            return array[:, list(array.attrs["taps"]).index(tap)]
    raise KeyError(f"{kind} of {tap}")


def direct(backbone, images, px=16):
    """Tokens per tap of one backbone over decoded images, one image at a time."""
    squares = [np.array(Image.fromarray(i).resize((px, px), Image.Resampling.BICUBIC)) for i in images]
    outputs = [backbone(torch.from_numpy(s).permute(2, 0, 1)[None], [t.tap for t in backbone.specs]) for s in squares]
    return {
        spec.tap: (torch.cat([o[spec.tap].grid for o in outputs]), torch.cat([o[spec.tap].prefix for o in outputs]))
        for spec in backbone.specs
    }
