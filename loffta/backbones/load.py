"""Makes a backbone from the options that name it, and says which files it would come from.

In: `--backbone`, `--weights`, `--image-px`, `--taps`.   Out: a `Backbone`. Called by `extract` and `jobs`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from loffta.backbones import Backbone
from loffta.backbones.custom import CUSTOM, file_of, load_custom
from loffta.backbones.weights import locate, split_adapter, stamp, stamp_adapter
from loffta.zoo.names import resolve_name


def load_backbone(
    name: str,
    *,
    weights: str = "hub",
    image_px: int | None = None,
    taps: str = "",
    device: str | torch.device = "cpu",
) -> Backbone:
    """Loads a timm model, or calls the function that `custom:MODULE:FUNCTION` names.

    Args:
        name: timm's id or a short name of the zoo.
        weights: any form of `--weights`; a custom function is given it as it is.
        image_px: side of the square input; None for the weights' own.
        taps: as `--taps` has it. Only its `module:PATH` parts matter here: they are looked for, and proven.
    Raises:
        UsageError, LofftaError: as `load_timm` and `load_custom`.
    """
    if name.startswith(CUSTOM):
        return load_custom(name, weights=weights, image_px=image_px, device=device)
    from loffta.backbones.timm_backbone import load_timm  # timm takes seconds to import

    return load_timm(resolve_name(name), weights=weights, image_px=image_px, taps=taps, device=device)


def stamp_files(name: str, weights: str) -> dict[str, Any]:
    """Path, size and time of every file behind a backbone's weights, as a store's attributes keep them.

    A later run compares them with the store's: equal ones need no loading. Nothing is opened or downloaded.

    Returns:
        `path`, `size`, `mtime_ns` and `adapter`, each None where there is no such file.
    """
    if name.startswith(CUSTOM):
        file, adapter = stamp(file_of(weights)), None
    else:
        file, adapter = locate(weights, name), stamp_adapter(split_adapter(weights)[1])
    return dict(zip(("path", "size", "mtime_ns"), file, strict=True)) | {"adapter": adapter and asdict(adapter)}
