"""The same encoded image without the metadata that no pixel depends on: for files whose metadata cannot be read.

In: bytes that Pillow could not decode as they are.   Out: bytes with the same pixels, or None where there is nothing
to leave out. Pillow parses much before it decodes, and raises over text, profiles and EXIF that no pixel needs.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")  # PNG 3, 5.6: the others describe the picture or its owner
_XMP = b"XML:com.adobe.xmp"  # it may hold the orientation, near its beginning
_MAX_TEXT = 1 << 19  # bytes of it that are kept; Pillow takes up to 1 MiB
# TIFF 6.0: what lays out the samples. Dropped are texts, ICC, IPTC, Photoshop's, XMP, and the IFDs of EXIF and GPS.
_LAYOUT = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
_LAYOUT |= {338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
_ENTRY = 12  # bytes of an entry of a TIFF's directory
# An item of type Exif in ISO 23008-12's `infe` box of version 2 or 3: after 4 bytes, the item's number and 2 bytes
_EXIF_ITEM = re.compile(rb"(infe[\x02\x03].{7}(?:..)?)Exif", re.DOTALL)


def without_metadata(data: bytes) -> bytes | None:
    """The same pixels; None where this is no PNG, TIFF or AVIF, or has no structure to go by."""
    if data.startswith(_PNG):
        return _plain_png(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _plain_tiff(data)
    if data[4:8] == b"ftyp":
        plain = _EXIF_ITEM.sub(rb"\1free", data)  # an item that nobody asks for
        return None if plain == data else plain
    return None


def _plain_png(data: bytes) -> bytes:
    parts = [_PNG]
    for kind, body, crc in _chunks(data):
        whole = zlib.crc32(kind + body) == crc
        if kind in _PIXELS or (kind == b"eXIf" and whole):
            parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc))
        elif kind == b"iTXt" and whole and body.startswith(_XMP + b"\0") and (text := _text_of(body)):
            content = b"iTXt" + _XMP + b"\0\0\0\0\0" + text
            parts.append(struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content)))
    return b"".join(parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(type, content, crc) of every whole chunk, and of one that the file's end cuts off."""
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body, rest = data[place + 8 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        yield kind, body, int.from_bytes(rest, "big")
        if kind == b"IEND":
            return
        place += 12 + length


def _text_of(body: bytes) -> bytes:
    """The beginning of an iTXt chunk's text, unpacked."""
    packed, rest = body[len(_XMP) + 1], body[len(_XMP) + 3 :]
    text = rest.split(b"\0", 2)[-1]
    if not packed:
        return text[:_MAX_TEXT]
    try:
        return zlib.decompressobj().decompress(text, _MAX_TEXT)
    except zlib.error:
        return b""


def _plain_tiff(data: bytes) -> bytes | None:
    """The first directory with the entries of the layout alone, as the only one."""
    order = "<" if data.startswith(b"II") else ">"
    (place,) = struct.unpack_from(f"{order}I", data, 4) if len(data) >= 8 else (len(data),)
    if place + 2 > len(data):
        return None
    (n_entries,) = struct.unpack_from(f"{order}H", data, place)
    start = place + 2
    entries = [data[start + i * _ENTRY : start + (i + 1) * _ENTRY] for i in range(n_entries)]
    kept = [e for e in entries if len(e) == _ENTRY and struct.unpack(f"{order}H", e[:2])[0] in _LAYOUT]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:place] + directory + data[place + len(directory) :]
