"""What decodes an int8 array, and how it lies on disk: a zarr group `<array>-int8` beside it, of `scale` and `zero`.

The folder is made whole under a temporary name and put in place by one rename, which fails where there is one already:
the first process wins, the others read what it wrote, and a kill leaves both arrays or none. They never change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.files.durable import create_folder
from loffta.store.metadata import CRC_BYTES, ArrayLayout, table_json
from loffta.store.paths import ArrayPaths
from loffta.store.reads import read_document, read_file, reason

FORMULA = "(q - zero) * scale; q = -128: missing"
CODES = 127  # codes are -CODES..CODES
MISSING_CODE = -128
_PARTS = ("scale", "zero")


@dataclass(frozen=True)
class Scales:
    """Decodes one array's codes (`quantise` does it); float32, on the CPU."""

    scale: NDArray[np.float32]  # [L, D], over 0
    zero: NDArray[np.float32]  # [L, D], whole numbers in -127..127

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 over both in little-endian bytes; done files keep it."""
        little = [np.ascontiguousarray(part, dtype="<f4").tobytes() for part in (self.scale, self.zero)]
        return hashlib.blake2b(b"".join(little), digest_size=16).hexdigest()

    @cached_property
    def copies(self) -> dict[Any, Any]:
        """On devices, as `quantise` has put them there."""
        return {}

    def take(self, taps: list[int]) -> Scales:
        """Those of some taps."""
        return Scales(self.scale[taps], self.zero[taps])


def has_scales(paths: ArrayPaths) -> bool:
    """Whether the array's scales have been made."""
    return paths.scales.exists()


def create_scales(paths: ArrayPaths, layout: ArrayLayout, scales: Scales, facts: dict[str, Any]) -> bool:
    """Puts the scales in place.

    Args:
        facts: how they were made and what they cost, for the group's attributes.
    Returns:
        False where another process was first; its scales stay.
    """
    attributes = {"loffta": {"taps": list(layout.taps), "formula": FORMULA, **facts}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    files = {paths.scales_metadata: json.dumps(group, indent=2).encode()}
    for name, values in zip(_PARTS, (scales.scale, scales.zero), strict=True):
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        files[paths.scale_metadata(name)] = table_json(values.shape)
        files[paths.scale_chunk(name)] = data + crc32c(data).to_bytes(CRC_BYTES, "little")
    return create_folder(paths.scales, files)


def read_scales(paths: ArrayPaths, layout: ArrayLayout) -> Scales:
    """The scales of an int8 array.

    Raises:
        DamageFound: they are gone, damaged, or those of another array.
    """
    try:
        taps = read_facts(paths)["taps"]
        if taps != list(layout.taps):
            raise ValueError(f"they are those of taps {', '.join(taps)}")
        shape = (layout.shape[1], layout.shape[-1])
        scales = Scales(*(_read_part(paths, name, shape) for name in _PARTS))
        if not (np.isfinite(scales.scale) & (scales.scale > 0)).all():
            raise ValueError("a scale is not over 0")
        if not ((np.abs(scales.zero) <= CODES) & (np.round(scales.zero) == scales.zero)).all():
            raise ValueError("a zero point is no code")
    except (FileNotFoundError, NotADirectoryError, DamageFound, ValueError, KeyError, TypeError) as error:
        gone = isinstance(error, FileNotFoundError)
        said = error.what if isinstance(error, DamageFound) else reason(error)
        raise DamageFound(
            "the scales of this int8 array are gone" if gone else f"the scales of this int8 array are damaged: {said}",
            where=paths.scales,
            remedy="run `loffta verify CACHE --repair`: it makes new ones and extracts the array anew",
        ) from error
    return scales


def read_facts(paths: ArrayPaths) -> dict[str, Any]:
    """What `create_scales` was told, and the taps.

    Raises:
        FileNotFoundError, DamageFound, ValueError, KeyError, TypeError: it cannot be read.
    """
    facts: dict[str, Any] = read_document(paths.scales_metadata)["attributes"]["loffta"]
    if not all(isinstance(tap, str) for tap in facts["taps"]):
        raise ValueError("its taps are no names")
    return facts


def _read_part(paths: ArrayPaths, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """[L, D]; ValueError where the bytes are not what the metadata says."""
    said, due = (read_document(paths.scale_metadata(name)), json.loads(table_json(shape)))
    if any(said[key] != due[key] for key in due):
        raise ValueError(f"the metadata of '{name}' is not that of a {list(shape)} float32 array in one plain chunk")
    stored = read_file(paths.scale_chunk(name))
    data, crc = stored[:-CRC_BYTES], stored[-CRC_BYTES:]
    if len(data) != 4 * shape[0] * shape[1] or crc32c(data) != int.from_bytes(crc, "little"):
        raise ValueError(f"the bytes of '{name}' do not match their crc32c")
    return np.frombuffer(data, dtype="<f4").reshape(shape).astype(np.float32)
