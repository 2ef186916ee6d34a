"""Everything that decides a feature's bytes, as canonical JSON, and the store that it names.

Batch size, workers, devices, paths and code version are never in a recipe: they may change between runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loffta.errors import DamageFound
from loffta.files.documents import from_json
from loffta.store import FORMAT
from loffta.store.paths import safe_name
from loffta.tokens import TokenSpec
from loffta.words import brief

RecipeDict = dict[str, Any]
_TEXT, _NUMBER, _NONE = (str,), (int,), (type(None),)
# what the fields are that others compute with, where they are there: stores of other versions have more or fewer
_WEIGHTS = {"spec": _TEXT, "path": _TEXT + _NONE, "size": _NUMBER + _NONE, "adapter": (dict, *_NONE)}
_REQUEST = {
    **dict.fromkeys(("backbone", "weights", "resize", "interpolation", "precision", "dtype"), _TEXT),
    "image_px": _NUMBER + _NONE,
    "pool": (list, *_NONE),
    "view": (dict, *_NONE),
}
_MAX_SIDE = 1 << 24  # of a tap's grid or channels
_ABSENT = "(absent)"  # not the same as None: it gives another hash


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """First 8 hex digits of the SHA-256 of the recipe's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def store_name(recipe: Mapping[str, Any]) -> str:
    """`<backbone>-<hash8>`, the folder of the store."""
    return f"{safe_name(recipe['backbone'])}-{recipe_hash(recipe)}"


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `field: old -> new` for every field that differs, nested fields joined by dots."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


@dataclass(frozen=True)
class StoreInfo:
    """What a store says of itself, in the attributes of its zarr group."""

    recipe: RecipeDict
    request: RecipeDict  # the options that resolved to the recipe, so that a later run need not load the model
    weights: RecipeDict  # spec, path, size, mtime_ns of the file they came from
    taps: tuple[TokenSpec, ...]  # every tap the backbone has at this input size, stored or not
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that made the store
    macs: int | None = None  # multiply-accumulates of one image, where the backbone could tell

    @property
    def name(self) -> str:
        """The store's folder."""
        return store_name(self.recipe)

    @property
    def label(self) -> str:
        """What users are shown: random weights and views are never shown without saying so."""
        spec = str(self.weights["spec"])
        notes = [f"{spec} weights"] if spec.startswith("random") else []
        if self.is_view:
            notes.append(f"view {self.recipe['view']['index']}")
        return f"{self.recipe['backbone']} [{', '.join(notes)}]" if notes else str(self.recipe["backbone"])

    @property
    def is_view(self) -> bool:
        """Whether it holds random crops of the images, beside a store of the whole ones."""
        return self.recipe.get("view") is not None

    @property
    def image_px(self) -> int:
        """Side of the square that the backbone saw; DamageFound where the recipe does not say it."""
        found = self.recipe["input"].get("image_px")
        if type(found) is not int:
            raise DamageFound(
                "the recipe does not say the size of the input (input.image_px)",
                where=f"stores/{self.name}/zarr.json",
                remedy="restore this file from a backup, or extract into a new cache",
            )
        return found

    def to_json(self) -> bytes:
        """The group's zarr.json."""
        attributes = {"format": FORMAT, **asdict(self), "taps": [_tap_json(spec) for spec in self.taps]}
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"loffta": attributes}}
        return json.dumps(document, indent=2).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StoreInfo:
        """Reads a group's zarr.json; ValueError or KeyError where it is not one of ours."""
        attributes = from_json(data)["attributes"]["loffta"]
        if attributes["format"] > FORMAT:
            raise ValueError(f"store format {attributes['format']} is newer than this loffta knows ({FORMAT})")
        recipe, request, weights = (attributes[name] for name in ("recipe", "request", "weights"))
        _check_types(recipe, {"backbone": _TEXT, "input": (dict,)}, "recipe")
        _check_types(request, _REQUEST, "request")
        _check_types({"spec": None} | weights, _WEIGHTS, "weights")
        _check_types(attributes, {"versions": (dict,), "macs": _NUMBER + _NONE}, "attributes")
        return cls(
            recipe,
            request,
            weights,
            tuple(_tap_spec(spec) for spec in attributes["taps"]),
            attributes["versions"],
            attributes.get("macs"),  # stores of older versions lack it
        )


def _check_types(values: Any, types: Mapping[str, tuple[type, ...]], what: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"its {what} is no object")
    for name, known in types.items():
        if name in values and type(values[name]) not in known:
            raise ValueError(f"its {what} has {brief(values[name])} as {name}")


def _tap_spec(values: Any) -> TokenSpec:
    spec = TokenSpec(**values)
    sides = (spec.height, spec.width, spec.n_prefix, spec.dim)
    if not isinstance(spec.tap, str) or not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in sides):
        raise ValueError(f"{brief(values)} is no tap")
    return spec


def _tap_json(spec: TokenSpec) -> dict[str, Any]:
    """`registers_only` is written only where it is true: other stores stay as they were, for older readers, too."""
    values = asdict(spec)
    if not spec.registers_only:
        del values["registers_only"]
    return values
