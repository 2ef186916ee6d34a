"""Which names are those of images: by their ending, as far as Pillow here can decode them.

Nothing is opened. Called by the readers of folders and shards.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable

# Formats that Pillow knows by name and does not decode itself: programs (EPS, WMF), and files that only a plug-in reads
_FOREIGN = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # of Pillow's own, where it was built with them
# What a picture is called in a shard, where an ending gives a member its part: depth.pfm is no second picture
_PHOTOS = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_SHOWN = 8


@functools.cache
def decodable() -> frozenset[str]:
    """Every ending, lower case with its dot, of a format that can be decoded here, by loaded plug-ins, too."""
    from PIL import Image, features  # `loffta info` only counts endings

    Image.init()
    opened = {"MPO", *Image.OPEN} - set(_FOREIGN)
    opened -= {name for name, module in _OPTIONAL.items() if not features.check(module)}
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in opened)


@functools.cache
def photos() -> frozenset[str]:
    """The usual ones of these."""
    return decodable() & frozenset(_PHOTOS)


def ending_of(name: str) -> str:
    """`.jpg` of `a/b.JPG`, empty where there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  a Path for each of a million names is slow


def count_endings(names: Iterable[str]) -> dict[str, int]:
    """Files by ending, the most frequent first; `none` for names without one."""
    counts = Counter(ending_of(name) or "none" for name in names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_endings(counts: dict[str, int]) -> str:
    """`3 .heic, 1 .jxl`; the eight most frequent, and how many more files."""
    shown = list(counts.items())[:_SHOWN]
    rest = sum(counts.values()) - sum(n for _, n in shown)
    parts = [f"{n} {ending if ending != 'none' else 'without an ending'}" for ending, n in shown]
    return ", ".join(parts) + (f" and {rest} more" if rest else "")
