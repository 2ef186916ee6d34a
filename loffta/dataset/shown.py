"""Dense targets at their own size, cut to the part of each image that features show.

In: NativeTargets of whole images, and the recipe of a store.   Out: the same of the centre that `--resize crop` cut
out, to whole pixels: outputs of a head lie over that and nothing else. Called by `dense`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loffta.crop import Centre
from loffta.errors import DamageFound
from loffta.store.cache import Store
from loffta.store.targets import geometry_of
from loffta.targets import BoxList, NativeTarget

_LEAST_SIDE = 1e-4  # of the window; what is left of a box beside it by rounding is less (as of boxes over squares)


def centre_of(store: Store) -> Centre | None:
    """What a store's features show of an image; None: all of it.

    Raises:
        DamageFound: the recipe does not say it.
    """
    said: Mapping[str, Any] = geometry_of(store.info.recipe)
    if said.get("resize") != "crop":
        return None
    share, mode = said["crop_pct"], said["crop_mode"]
    if not (isinstance(share, float | int) and 0 < share <= 1 and mode in ("center", "squash")):
        raise DamageFound(
            "the recipe does not say which centre of an image was cut out (input.crop_pct, input.crop_mode)",
            where=f"stores/{store.name}/zarr.json",
            remedy="restore this file from a backup, or extract into a new cache",
        )
    return Centre(store.info.image_px, share, mode)


def cut_target(native: NativeTarget, centre: Centre) -> NativeTarget:
    """A target of the centre alone: the pixels whose own centres lie in it."""
    left, top, right, bottom = (int(np.ceil(end - 0.5)) for end in centre.window(native.width, native.height))
    left, top = min(left, native.width - 1), min(top, native.height - 1)  # of a window below a pixel one is left
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    if native.boxes is not None:
        boxes = _cut_boxes(native.boxes, left, top, right - left, bottom - top)
        return NativeTarget(native.kind, bottom - top, right - left, boxes=boxes)
    assert native.map is not None, "a target is a map or boxes"
    return NativeTarget(native.kind, bottom - top, right - left, map=native.map[top:bottom, left:right])


def _cut_boxes(boxes: BoxList, left: int, top: int, width: int, height: int) -> BoxList:
    extent = np.array([width, height] * 2)
    corners = (boxes.corners - [left, top] * 2).clip(0, extent)
    seen = (corners[:, 2:] - corners[:, :2] > _LEAST_SIDE * extent[:2]).all(axis=1)
    return BoxList(corners[seen], boxes.classes[seen], boxes.crowd[seen])
