"""Codecs of packed arrays: what a chunk's bytes become in a shard, and back. Lossless alone.

In: a name from the command line, or what a zarr.json says.   Out: ChunkCodec, which encodes and decodes one chunk.
The codecs are zarr v3's own (zstd, blosc) and numcodecs' (pcodec), so that zarr-python opens what is packed here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import LofftaError, unknown_name
from loffta.store.metadata import CRC_BYTES, ArrayLayout
from loffta.words import brief

CODECS = (
    "zstd",  # every zarr v3 library reads it
    "blosc",  # zstd behind a byte shuffle: smaller for wide convolutional maps alone
    "pcodec",  # made for numbers: twice as much gained of float16, at a fraction of the rate; 8 bits go to zstd
)


def find_codec(name: str, dtype: np.dtype[Any]) -> dict[str, Any]:
    """What stands in the zarr.json of an array of `dtype` that is packed with a codec of CODECS.

    Raises:
        UsageError: there is no such codec.
    """
    if name not in CODECS:
        raise unknown_name("codec", name, CODECS, where="--codec")
    if name == "blosc":
        shuffle = "shuffle" if dtype.itemsize > 1 else "noshuffle"
        settings = {"typesize": dtype.itemsize, "cname": "zstd", "clevel": 5, "shuffle": shuffle, "blocksize": 0}
        return {"name": "blosc", "configuration": settings}
    if name == "pcodec" and dtype.itemsize > 1:  # it takes no numbers of 8 bits
        return {"name": "numcodecs.pcodec", "configuration": {"level": 8}}
    return {"name": "zstd", "configuration": {"level": 3, "checksum": False}}


def codec_name(layout: ArrayLayout) -> str | None:
    """The codec of a packed array, fit for a message; None of a plain one."""
    return None if layout.codec is None else str(layout.codec["name"]).removeprefix("numcodecs.")


class ChunkCodec:
    """Encodes and decodes the chunks of one packed array; any thread may, several at once."""

    def __init__(self, layout: ArrayLayout, *, where: Path) -> None:
        """Of an array with a `codec`.

        Args:
            where: its zarr.json, for messages.
        Raises:
            LofftaError: the codec's package is not installed, or its settings are none that it knows.
        """
        assert layout.codec is not None, "a plain array has no codec"
        settings = layout.codec.get("configuration", {})
        try:
            self._codec = _MAKERS[layout.codec["name"]](settings)
        except ImportError as error:
            raise LofftaError(
                "the package 'pcodec' is not installed, which this array is packed with",
                where=where,
                remedy="pip install 'loffta[pcodec]'",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise LofftaError(
                f"the settings of its codec cannot be used: {brief(settings)}",
                where=where,
                remedy="was it packed by loffta? Pack the original again",
            ) from error

    def encode(self, chunk: NDArray[Any]) -> bytes:
        """The chunk's numbers, packed."""
        return bytes(self._codec.encode(chunk))

    def decode(self, stored: bytearray, out: NDArray[Any]) -> int:
        """Unpacks a chunk, as it lies in its shard with its crc32c behind it, into `out` of the chunk's size.

        What a stranger packed grows no larger than `out`.

        Returns:
            crc32c of the plain chunk, which the done file has.
        Raises:
            ValueError: the bytes are damaged.
        """
        packed = memoryview(stored)[:-CRC_BYTES]
        if len(stored) <= CRC_BYTES or crc32c(packed) != int.from_bytes(stored[-CRC_BYTES:], "little"):
            raise ValueError("the bytes do not match their crc32c")
        try:
            self._codec.decode(packed, out)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError("the bytes cannot be unpacked") from error
        return int(crc32c(out.reshape(-1).view(np.uint8).data))


def _zstd(settings: dict[str, Any]) -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=int(settings["level"]), checksum=bool(settings.get("checksum", False)))


def _blosc(settings: dict[str, Any]) -> Any:
    from numcodecs.blosc import BITSHUFFLE, NOSHUFFLE, SHUFFLE, Blosc

    shuffles = {"noshuffle": NOSHUFFLE, "shuffle": SHUFFLE, "bitshuffle": BITSHUFFLE}
    shuffle = shuffles[settings["shuffle"]]
    return Blosc(cname=settings["cname"], clevel=int(settings["clevel"]), shuffle=shuffle, typesize=None)


def _pcodec(settings: dict[str, Any]) -> Any:
    from numcodecs.pcodec import PCodec

    return PCodec(level=int(settings["level"]))


_MAKERS: dict[str, Callable[[dict[str, Any]], Any]] = {"zstd": _zstd, "blosc": _blosc, "numcodecs.pcodec": _pcodec}
