"""Encoded images with known content, and PNG and TIFF chunk by chunk, as no library would write them."""

import io
import struct
import zlib


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(data, chunks, behind=False):
    """A PNG with more chunks behind its header, or ahead of its end."""
    place = len(data) - 12 if behind else 33
    return data[:place] + b"".join(chunks) + data[place:]


def tiff(pixels, tags, order="<", width=None, packed=False):
    """One strip of samples, deflated if `packed`; `tags` are (tag, type, values): 2 bytes, 3 shorts, 4 longs."""
    height, width = len(pixels), width or pixels.shape[1]
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    raw = zlib.compress(raw) if packed else raw
    basic = [(256, 4, [width]), (257, 4, [height]), (259, 3, [8 if packed else 1]), (273, 4, [8])]
    basic += [(278, 4, [height]), (279, 4, [len(raw)])]
    entries, beside = b"", b""
    place = 8 + len(raw)
    whole = sorted([*basic, *tags])
    end = place + 2 + 12 * len(whole) + 4
    for tag, kind, values in whole:
        content = bytes(values) if kind == 2 else struct.pack(f"{order}{len(values)}{'HI'[kind == 4]}", *values)
        head = struct.pack(f"{order}HHI", tag, kind, len(values))
        if len(content) <= 4:
            entries += head + content.ljust(4, b"\0")
        else:
            entries += head + struct.pack(f"{order}I", end + len(beside))
            beside += content
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(whole)) + entries + bytes(4)
    return mark + struct.pack(f"{order}I", place) + raw + directory + beside
