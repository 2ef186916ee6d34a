"""Where images come from: a listing made without opening an image, and the bytes of one image by its key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from loffta.errors import UsageError, unknown_name
from loffta.images import demo
from loffta.store.table import ImageTable


@runtime_checkable
class ImageSource(Protocol):
    """An image set that can be listed and read."""

    def listing(self) -> ImageTable:
        """Every image with its size, split and label, in a stable order."""
        ...

    def read(self, key: str) -> bytes:
        """The encoded bytes of one image; FileNotFoundError or OSError where they cannot be had."""
        ...


SOURCES: dict[str, Callable[[str], ImageSource]] = {"demo": demo.open_demo}


def open_source(spec: str) -> ImageSource:
    """Opens an image set by its name, `<kind>:<what>`.

    Raises:
        UsageError: no such kind of source; the near names are given.
    """
    kind, colon, rest = spec.partition(":")
    if not colon:
        raise UsageError(
            f"'{spec}' does not say what kind of image set it is",
            where="SOURCE",
            remedy=f"write <kind>:<what>, for example demo:digits; kinds: {', '.join(SOURCES)}",
        )
    if kind not in SOURCES:
        raise unknown_name("kind of image set", kind, SOURCES, where=f"SOURCE {spec}")
    return SOURCES[kind](rest)
