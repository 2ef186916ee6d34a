"""What bytes are that Pillow does not know as an image: the reason that a user can act on.

In: the bytes of one file.   Out: one line. Only the first bytes are looked at, and a TIFF's first directory.
"""

from __future__ import annotations

import struct

UNKNOWN = "not an image of a known format"
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_BEGINNINGS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "HDF5",
    b"%PDF": "PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "a pointer of Git LFS: the file itself was not fetched",
}
_TIFF_TAGS = {277: "samples", 258: "bits", 339: "format"}


def describe_strange(data: bytes) -> str:
    """One line about bytes that no decoder took."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        return f"{UNKNOWN} (HEIF, as phones write it; convert it to JPEG or PNG)"
    if data[128:132] == b"DICM":
        return f"{UNKNOWN} (DICOM)"
    found = next((name for begin, name in _BEGINNINGS.items() if data.startswith(begin)), None)
    if found:
        return f"{UNKNOWN} ({found})"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return f"{UNKNOWN} ({_describe_tiff(data)})"
    if data.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return f"{UNKNOWN} (a web page)"
    return UNKNOWN


def _describe_tiff(data: bytes) -> str:
    """Samples and bits of the first directory: of what has five channels nobody knows which are red, green and blue."""
    order = "<" if data.startswith(b"II") else ">"
    found = dict.fromkeys(_TIFF_TAGS.values(), 1)
    try:
        (place,) = struct.unpack_from(f"{order}I", data, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", data, place)
        for i in range(n_entries):
            tag, _, count = struct.unpack_from(f"{order}HHI", data, place + 2 + 12 * i)
            if tag in _TIFF_TAGS:
                inline = place + 2 + 12 * i + 8
                at = inline if count <= 2 else struct.unpack_from(f"{order}I", data, inline)[0]
                (found[_TIFF_TAGS[tag]],) = struct.unpack_from(f"{order}H", data, at)
    except struct.error:
        return "a broken TIFF"
    kind = {2: "signed", 3: "float", 5: "complex"}.get(found["format"], "unsigned")
    return f"a TIFF of {found['samples']} samples a pixel, {found['bits']} bits {kind}: no layout that can be shown"
