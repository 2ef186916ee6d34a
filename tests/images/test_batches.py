"""Batches of one unit: the same whatever the threads, each image read once."""

import errno
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from loffta.errors import LofftaError
from loffta.images.batches import ImageStream, decoding_threads
from loffta.images.geometry import PixelGeometry, to_square
from loffta.store.ledger import BAD, OK
from tests.fakes import PngSource, picture
from tests.imagesets import decode

SIZES = [PixelGeometry(8), PixelGeometry(12, interpolation="bilinear"), PixelGeometry(8)]
BROKEN = {4: b"", 11: OSError(5, "Input/output error")}


def stream(source, units, pool, n_ahead=10):
    return ImageStream(source, source.listing(), SIZES, pool, units, n_ahead=n_ahead)


def unit(source, rows, pool, n_ahead=10):
    return next(iter(stream(source, [(0, rows)], pool, n_ahead)))


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_batches_do_not_depend_on_threads(n_threads, batch_size):
    source, rows = PngSource(30, BROKEN), range(2, 20)
    with ThreadPoolExecutor(n_threads) as pool:
        images = unit(source, rows, pool)
        batches = list(images.batches(batch_size))
    good = [row for row in rows if row not in BROKEN]
    assert [b.rows for b in batches] == [good[i : i + batch_size] for i in range(0, len(good), batch_size)]
    for geometry in SIZES:
        pixels = np.concatenate([b.pixels[geometry] for b in batches])
        assert np.array_equal(
            pixels, np.stack([to_square(Image.fromarray(picture(row)), geometry, "") for row in good])
        )
    assert set(source.reads.values()) == {1}
    assert [s.row for s in images.statuses] == list(rows)


def test_statuses():
    import hashlib

    source = PngSource(30, BROKEN)
    with ThreadPoolExecutor(2) as pool:
        images = unit(source, range(3, 12), pool)
        list(images.batches(4))
    for status in images.statuses:
        if status.row in BROKEN:
            assert (status.status, status.width, status.height, status.blake2b) == (BAD, 0, 0, "")
        else:
            data = source.encoded(status.row)
            width, height = decode(data).image.size
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            assert (status.status, status.reason) == (OK, "")
            assert (status.width, status.height, status.blake2b) == (width, height, digest)
    assert images.statuses[1].reason == "empty file"
    assert images.statuses[8].reason == "cannot be read: [Errno 5] Input/output error"


def test_a_unit_of_bad_images_gives_no_batch():
    source = PngSource(4, dict.fromkeys(range(4), b"x"))
    with ThreadPoolExecutor(1) as pool:
        images = unit(source, range(4), pool)
        assert list(images.batches(2)) == []
    assert [s.status for s in images.statuses] == [BAD] * 4


def test_no_more_is_read_ahead_than_allowed():
    source = PngSource(40)
    with ThreadPoolExecutor(2) as pool:
        batches = unit(source, range(40), pool, n_ahead=10).batches(5)
        next(batches)
        assert sum(source.reads.values()) <= 5 + 10


def test_the_next_unit_is_read_before_this_one_is_used_up():
    """Else the model would wait at every unit's start for its first batch."""
    source, asked = PngSource(24), []

    def units():
        for i in range(3):
            asked.append(i)
            yield i, range(8 * i, 8 * i + 8)

    seen = []
    with ThreadPoolExecutor(2) as pool:
        for images in stream(source, units(), pool, n_ahead=10):
            assert asked == list(range(min(images.unit + 2, 3)))  # and no unit is settled earlier than needed
            for batch in images.batches(3):
                seen.append((images.unit, batch.rows))
    units_of_3 = [(i, [8 * i + r for r in rows]) for i in range(3) for rows in ([0, 1, 2], [3, 4, 5], [6, 7])]
    assert seen == units_of_3
    assert set(source.reads.values()) == {1}


def test_a_look_ahead_shorter_than_a_unit_or_a_batch_changes_nothing():
    source = PngSource(20)
    with ThreadPoolExecutor(2) as pool:
        found = [
            b.rows for u in stream(source, [(0, range(7)), (1, range(7, 20))], pool, n_ahead=1) for b in u.batches(4)
        ]
    assert found == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14], [15, 16, 17, 18], [19]]


def test_a_bug_in_the_source_is_no_bad_image():
    source = PngSource(4, {2: ZeroDivisionError("bug")})
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError, match="bug"):
        list(unit(source, range(4), pool).batches(2))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_trouble_of_the_machine_is_no_bad_image(number):
    """It would be set aside for good, though its file is whole."""
    source = PngSource(4, {2: OSError(number, "not shown", "/pictures/2.png")})
    with ThreadPoolExecutor(1) as pool, pytest.raises(LofftaError, match=r"where:  /pictures/2\.png"):
        list(unit(source, range(4), pool).batches(2))


def test_decoding_threads_leave_the_filters_as_they_were():
    """Threads that each set and restore the process's filters leave "ignore" behind, or quarantine good images."""
    before = list(warnings.filters)
    with decoding_threads(4) as pool:
        list(unit(PngSource(40), range(40), pool).batches(8))
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", stacklevel=1)
    assert warnings.filters == before


def test_what_pil_warns_of_is_no_bad_image():
    """A palette whose transparency is given in bytes: PIL warns, and pytest would make it an error."""
    import io

    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=bytes([0, 128]))

    class Warning_(PngSource):
        def encoded(self, i):
            return buffer.getvalue()

    with decoding_threads(2) as pool:
        images = unit(Warning_(3), range(3), pool)
        (batch,) = images.batches(8)
    assert batch.rows == [0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_decoding_threads_give_way():
    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    with decoding_threads(1) as pool:
        assert pool.submit(priority).result() == min(before + 5, 19)
    assert priority() == before


def test_leaving_early_drops_what_is_pending():
    started, release = [], threading.Event()

    def work():
        started.append(1)
        release.wait(60)

    with pytest.raises(KeyError), decoding_threads(1) as pool:  # noqa: PT012  the body is the case
        futures = [pool.submit(work) for _ in range(50)]
        while not started:
            pass
        release.set()
        raise KeyError
    assert sum(f.cancelled() for f in futures) + len(started) == 50
