"""200 malformed files among 30 good images: quarantined with a reason each, and nothing else is touched by them."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from loffta.store.cache import Cache
from tests.survival.commands import VIT, Command, assert_one_error, loffta

SEED = 20261122
PEAK_MIB = 2048  # torch and timm alone take 500; the largest bomb here would take 40,000
FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "tif": "TIFF", "webp": "WEBP", "bmp": "BMP"}
WORDS = [*VIT, "--kinds", "grid", "--unit-images", "16", "--batch-size", "1"]


def picture(seed, size=(20, 16), mode="RGB"):
    channels = {"RGB": (3,), "CMYK": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode=None if mode != "CMYK" else mode)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")


def fuzzed(rng, n_files):
    """Files whose first bytes are damaged, cut or continued, by name."""
    found = {}
    for i in range(n_files):
        ending = list(FORMATS)[i % len(FORMATS)]
        data = bytearray(encode(picture(i), FORMATS[ending]))
        if i % 3 == 0:
            for place in rng.integers(0, min(64, len(data)), size=6):
                data[place] = rng.integers(0, 256)
        elif i % 3 == 1:
            data = data[: rng.integers(1, len(data) * 3 // 4)]
        else:
            place = rng.integers(2, 30)
            data[place:place] = rng.bytes(40)
        found[f"fuzz-{i:03d}.{ending}"] = bytes(data)
    return found


def crafted(rng):
    """Files that somebody thought about, by name."""
    gif = bytearray(encode(picture(0), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    text_bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))
    good = encode(picture(1), "PNG")
    elf = b"\x7fELF\x02\x01\x01" + bytes(200)
    return {
        "empty.jpg": b"",
        "one-byte.png": b"\x89",
        "text.jpg": b"dear reader\n" * 20,
        "page.jpg": b"<html><script>alert(1)</script></html>",
        "program.jpg": elf,
        "zip.png": b"PK\x03\x04" + bytes(100),
        "noise.tif": rng.bytes(3000),
        "bomb.png": png_bomb(100_000, 100_000),
        "flat-bomb.png": png_bomb(2_000_000, 100),
        "canvas.gif": bytes(gif),
        "text-bomb.png": good[:33] + text_bomb + good[33:],
        "escape.png": b"\x89PNG\r\n\x1a\n" + png_chunk(b"\x1b[2J", b"\x1b[31m") + bytes(20),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n",  # for ever, if it were run
        "ifd-loop.tif": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + bytes(12),
    }


def odd_but_good(folder):
    """Images that are strange and right."""
    exif = b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(30)
    found = {
        "pixel.png": encode(picture(2, (1, 1)), "PNG"),
        "wide.png": encode(picture(3, (65500, 1), "L"), "PNG"),
        "cmyk.jpg": encode(picture(4, mode="CMYK"), "JPEG"),
        "sixteen.png": encode(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160), "PNG"),
        "really-a-png.jpg": encode(picture(5), "PNG"),
        "exif.jpg": encode(picture(6), "JPEG", exif=exif),
        "frames.tif": encode(picture(7), "TIFF", save_all=True, append_images=[picture(i) for i in range(40)]),
    }
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return sorted(found)


def what_pil_makes(path):
    """Whether Pillow gives pixels, asked without the code under test."""
    if path.read_bytes()[:4] == b"%!PS":
        return False
    try:
        with Image.open(path) as image:
            image.load()
            return True
    except Exception:
        return False


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("malformed")
    good, mixed = root / "good", root / "mixed"
    good.mkdir()
    mixed.mkdir()
    odd = odd_but_good(good)
    for i in range(30 - len(odd)):
        (good / f"good-{i:02d}.png").write_bytes(encode(picture(100 + i), "PNG"))
    for path in good.iterdir():
        (mixed / path.name).write_bytes(path.read_bytes())
    rng = np.random.default_rng(SEED)
    files = crafted(rng)
    files |= fuzzed(rng, 200 - len(files))
    for name, data in files.items():
        (mixed / name).write_bytes(data)
    (mixed / "folder.jpg").mkdir()
    os.mkfifo(mixed / "pipe.jpg")
    (mixed / "dangling.jpg").symlink_to("nowhere")
    (mixed / "round.jpg").symlink_to("round.jpg")
    (mixed / "outside.jpg").symlink_to("/etc/hostname")
    assert len(files) == 200
    return good, mixed, sorted(files)


def grids(root):
    """(key -> [L, H, W, D], key -> reason) through zarr-python and pyarrow."""
    cache = Cache.open(root)
    (folder,) = root.glob("stores/*/grid-0")
    values = zarr.open_array(store=folder, mode="r")[:]
    tables = [pq.read_table(path) for path in sorted((root / "done" / "targets" / "thumb").iterdir())]
    status = [pair for t in tables for pair in zip(t["status"].to_pylist(), t["reason"].to_pylist(), strict=True)]
    keys = cache.table.keys
    good = {key: value for key, value, (word, _) in zip(keys, values, status, strict=True) if word == "ok"}
    return good, {key: reason for key, (word, reason) in zip(keys, status, strict=True) if word == "bad"}


def test_malformed_images_are_quarantined_and_the_run_goes_on(tmp_path, folders):
    good, mixed, malformed = folders
    caches = [tmp_path / name for name in ("first", "second")]
    running = [Command(tmp_path, "extract", mixed, *WORDS, "--cache", cache) for cache in caches]
    loffta(tmp_path, "extract", good, *WORDS, "--cache", tmp_path / "alone")
    done = [command.finish() for command in running]
    reasons = []
    for cache, ended in zip(caches, done, strict=True):
        assert ended.code == 3, ended.err
        assert_one_error(ended, " images cannot be used; the first: ", "--max-bad-frac")
        assert ended.peak_mib < PEAK_MIB
        for name, reason in (("pipe.jpg", "no regular files"), ("dangling.jpg", "links that are broken or leave")):
            assert re.search(rf"skipped \d \({reason}[^\n]*{name}", ended.err)
        found, bad = grids(cache)
        reasons.append(bad)
    print(f"\n{len(bad)} of {len(malformed)} refused, peak {done[0].peak_mib:.0f} MiB")
    assert reasons[0] == reasons[1]
    expected, none = grids(tmp_path / "alone")
    assert none == {}
    assert len(expected) == 30
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    # pixels decide: Pillow alone gives up over the text beside them
    assert set(bad) == {name for name in malformed if not what_pil_makes(mixed / name)} - {"text-bomb.png"}
    assert len(bad) > 100
    for key, reason in bad.items():
        assert reason.isprintable(), (key, reason)
        assert 0 < len(reason) <= 200
        assert not re.search(r"0x[0-9a-f]{6,}", reason), (key, reason)

    accepted = loffta(tmp_path, "extract", mixed, *WORDS, "--cache", caches[0], "--max-bad-frac", "1")
    assert f"nothing to do; {len(bad)} bad images in the cache" in accepted.out
    shown = loffta(tmp_path, "info", caches[0]).out
    first = next(iter(bad))
    assert re.search(rf"\d bad: {re.escape(bad[first])}: [^\n]*{re.escape(first)}", shown)
    assert sum(int(n) for n in re.findall(r"^  (\d+) bad: ", shown, re.MULTILINE)) == len(bad)
