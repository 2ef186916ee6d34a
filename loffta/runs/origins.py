"""What a run keeps of its features so that they can be made anew from images, though its cache is gone: stores.json.

In: the Features of a training and the classes.   Out: the same Features without a cache behind them, for `online`.
`train` writes the file with the first head. Recipes, requests, tap lists and the scales of int8 arrays are in it; the
images, the weights and the features themselves are not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from loffta.dataset.dense import image_feature
from loffta.dataset.features import Feature
from loffta.errors import LofftaError
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import replace_file
from loffta.look import Look, look_fields, look_of
from loffta.runs.records import problem_of
from loffta.runs.stores_text import FeatureText, OriginsText, ScalesText
from loffta.store.cache import CachedArray, Store
from loffta.store.metadata import image_layout
from loffta.store.paths import THUMB, ArrayPaths
from loffta.store.recipe import StoreInfo
from loffta.store.scales import Scales
from loffta.tokens import FeatureSpec

FORMAT = 1


@dataclass(frozen=True)
class FreshArray(CachedArray):
    """An array that no file holds: it has the taps of one Feature, and says how a store would round them."""

    scales: Scales | None = None


@dataclass(frozen=True)
class FreshThumbs(CachedArray):
    """Thumbnails that no file holds, and how an image becomes RGB before it is made one."""

    look: Look = Look()  # noqa: RUF009  it is immutable


class Thumbs(NamedTuple):
    """The thumbnails of a cache, which some heads are guided by."""

    px: int
    look: Look


@dataclass(frozen=True)
class Origins:
    """Where a run's features come from, and what its heads' outputs mean."""

    features: tuple[Feature, ...]  # in the order in which the heads take them; their arrays are FreshArrays
    classes: tuple[str, ...]  # in the order of the heads' outputs
    thumbs: Thumbs | None = None  # which the heads take last; None: they take none, or an older loffta did not say

    @classmethod
    def of(cls, features: Sequence[Feature], classes: Sequence[str], thumbs: Thumbs | None = None) -> Origins:
        """Those of features of a cache; reads the scales of int8 arrays."""
        return cls(tuple(_detached(feature) for feature in features), tuple(classes), thumbs)

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """All that the heads take: the features, and behind them the thumbnails; the array of these is FreshThumbs."""
        if self.thumbs is None:
            return self.features
        layout = image_layout(0, (self.thumbs.px, self.thumbs.px, 3), np.uint8, 1, kind=THUMB)
        array = FreshThumbs(ArrayPaths(THUMB, Path(THUMB), Path(THUMB)), layout, look=self.thumbs.look)
        return (*self.features, image_feature(array, self.features[0].store))

    def to_json(self) -> bytes:
        """The bytes of stores.json."""
        stores = {f.store.name: json.loads(f.store.info.to_json()) for f in self.features}
        described = [
            {
                "store": feature.store.name,
                "array": feature.array.paths.name,
                "kind": feature.array.kind,
                "dtype": feature.array.layout.dtype.name,
                "shape": list(feature.array.layout.item_shape),
                "scales": None if feature.array.scales is None else _encode(feature.array.scales),
                "spec": asdict(feature.spec),
            }
            for feature in self.features
        ]
        document = {"format": FORMAT, "classes": list(self.classes), "stores": stores, "features": described}
        if self.thumbs is not None:
            document["thumbs"] = {"px": self.thumbs.px, **look_fields(self.thumbs.look)}
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Origins:
        """Reads stores.json; a built-in error where it is not one that this loffta can read."""
        document = OriginsText.model_validate(from_json(data))
        if document.format > FORMAT:
            raise ValueError(f"format {document.format} is newer than this loffta knows ({FORMAT})")
        stores = {
            name: Store(name, StoreInfo.from_json(json.dumps(group).encode()), ())
            for name, group in document.stores.items()
        }
        features = [_feature(stores[described.store], described) for described in document.features]
        said = document.thumbs
        thumbs = None if said is None else Thumbs(said.px, look_of(said.model_dump(exclude_none=True)))
        return cls(tuple(features), tuple(document.classes), thumbs)


def write_origins(
    path: Path, features: Sequence[Feature], classes: Sequence[str], thumbs: Thumbs | None = None
) -> None:
    """Writes stores.json."""
    replace_file(path, Origins.of(features, classes, thumbs).to_json())


def trained_classes(path: Path, here: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a run in the order of its heads' outputs and predictions, from its stores.json.

    Args:
        here: those of its cache, which runs without a stores.json, of older versions, mean. A cache that has grown may
            have others in between.
    """
    return read_origins(path).classes if path.exists() else here


def read_origins(path: Path) -> Origins:
    """Reads stores.json.

    Raises:
        LofftaError: it is damaged, or of a newer format.
    """
    try:
        return Origins.from_json(read_bytes(path))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {str(error)[:200]}"
        why = problem_of(error) if isinstance(error, ValidationError) else said
        raise LofftaError(
            f"cannot read where the features of this run come from ({why})",
            where=path,
            remedy="use the loffta version that made the run; or delete the file while the run's cache is still there",
        ) from error


def fresh_feature(info: StoreInfo, spec: FeatureSpec) -> Feature:
    """What a store would give of features that were never stored: float32, as the network has them."""
    shape = (len(spec.taps), *spec.shape)
    return Feature(
        Store(info.name, info, ()), _fresh_array(spec.kind, spec.kind, spec.taps, shape, "float32", None), spec
    )


def _detached(feature: Feature) -> Feature:
    layout, positions = feature.array.layout, feature.positions
    scales = None if feature.array.scales is None else feature.array.scales.take(positions)
    shape = (len(positions), *layout.item_shape[1:])
    store = replace(feature.store, arrays=())
    array = _fresh_array(feature.array.paths.name, feature.array.kind, feature.spec.taps, shape, layout.dtype, scales)
    return replace(feature, store=store, array=array)


def _feature(store: Store, described: FeatureText) -> Feature:
    spec = described.spec
    taps, shape = tuple(spec.taps), tuple(spec.shape)
    scales = None if described.scales is None else _decode(described.scales)
    if (described.dtype == "int8") != (scales is not None):
        raise ValueError("an int8 array has scales, and no other")
    array = _fresh_array(described.array, described.kind, taps, tuple(described.shape), described.dtype, scales)
    found = FeatureSpec(spec.backbone, taps, spec.kind, shape, spec.image_px, spec.registers_only)
    return Feature(store, array, found)


def _fresh_array(
    name: str, kind: str, taps: Sequence[str], shape: tuple[int, ...], dtype: Any, scales: Scales | None
) -> FreshArray:
    layout = image_layout(0, shape, dtype, 1, kind=kind, taps=list(taps))
    return FreshArray(ArrayPaths(name, Path(name), Path(name)), layout, scales)


def _encode(scales: Scales) -> dict[str, Any]:
    """As text without rounding: base64 of little-endian float32."""
    parts = {"scale": scales.scale, "zero": scales.zero}
    text = {name: base64.b64encode(values.astype("<f4").tobytes()).decode() for name, values in parts.items()}
    return {"shape": list(scales.scale.shape), **text}


def _decode(encoded: ScalesText) -> Scales:
    parts = (
        np.frombuffer(base64.b64decode(text), "<f4").reshape(encoded.shape).astype(np.float32)
        for text in (encoded.scale, encoded.zero)
    )
    return Scales(*parts)
