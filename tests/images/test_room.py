"""Bytes in flight: bounded whatever the threads, and nobody waits for ever."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from loffta.images.batches import ImageStream
from loffta.images.decode import open_image
from loffta.images.geometry import PixelGeometry
from loffta.images.room import MOST, Room
from tests.fakes import PngSource, picture


def test_what_fits_is_held_at_once_and_what_does_not_waits():
    room, inside, go = Room(100), threading.Semaphore(0), threading.Event()
    most, now, lock = [0], [0], threading.Lock()

    def work(n):
        with room.hold(n):
            with lock:
                now[0] += n
                most[0] = max(most[0], now[0])
            inside.release()
            go.wait(60)
            with lock:
                now[0] -= n

    threads = [threading.Thread(target=work, args=(40,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert inside.acquire(timeout=60)
    assert not inside.acquire(timeout=0.05)  # a third does not fit
    go.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert most[0] == 80


def test_one_alone_may_take_more_than_there_is():
    room = Room(100)
    with room.hold(1000) as held:
        assert held.grow_to(2000)
    with room.hold(30), room.hold(30) as held:
        assert held.grow_to(70)
        assert not held.grow_to(71)
    with room.hold(100):
        pass


def test_the_room_follows_the_memory_that_is_free(monkeypatch):
    for free, expected in ((1 << 40, MOST), (4 << 30, 1 << 30), (0, 64 << 20)):
        monkeypatch.setattr("loffta.machine.process.free_memory_bytes", lambda free=free: free)
        with Room().hold(expected // 2), Room().hold(1):
            pass
        room = Room()
        with room.hold(1) as held, room.hold(1):
            assert held.grow_to(expected - 1)
            assert not held.grow_to(expected)


@pytest.mark.parametrize("n_threads", [1, 8])
def test_decoding_never_holds_more_than_the_room_or_one_image(n_threads, monkeypatch):
    """Counted by a decoder of our own that says when it begins and ends; the pixels are those of a wide room."""
    source, rows = PngSource(24), range(24)
    needs = [open_image(source.encoded(i)).n_bytes for i in rows]
    budget = sorted(needs)[-1] - 1  # the largest does not fit, several small ones do
    now, most, lock = [0], [], threading.Lock()
    plain = ImageStream._finish

    def counted(self, row, data, opened):
        with lock:
            now[0] += needs[row]
            most.append((now[0], needs[row]))
        found = plain(self, row, data, opened)
        with lock:
            now[0] -= needs[row]
        return found

    def run(n, room):
        with ThreadPoolExecutor(n) as pool:
            stream = ImageStream(source, source.listing(), [PixelGeometry(8)], pool, [(0, rows)], n_ahead=24, room=room)
            return np.concatenate([b.pixels[PixelGeometry(8)] for u in stream for b in u.batches(5)])

    expected = run(1, Room(1 << 30))
    monkeypatch.setattr(ImageStream, "_finish", counted)
    assert np.array_equal(run(n_threads, Room(budget)), expected)
    assert len(most) == 24
    assert all(total <= budget or total == alone for total, alone in most)


@pytest.mark.parametrize(
    ("mode", "kind", "options", "least"),
    [
        ("RGB", "JPEG", {}, 4),  # bytes a pixel that there must be at once: RGB
        ("RGB", "JPEG", {"progressive": True}, 10),  # and 3 x 16 bits of coefficients
        ("RGBA", "PNG", {}, 8),  # and its RGB
        ("L", "PNG", {}, 5),
        ("I;16", "PNG", {}, 6),
        ("F", "TIFF", {}, 8),
        ("RGB", "WEBP", {}, 16),  # measured
        ("RGB", "AVIF", {}, 9),
        ("RGB", "JPEG2000", {}, 20),
    ],
)
def test_the_header_tells_what_decoding_takes(mode, kind, options, least):
    pixels = np.array(Image.fromarray(picture(1)).resize((50, 40)))
    image = {
        "I;16": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "F": lambda: Image.fromarray(pixels[..., 0].astype(np.float32) / 255),
    }.get(mode, lambda: Image.fromarray(pixels).convert(mode))()
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    data = buffer.getvalue()
    assert len(data) + least * 2000 <= open_image(data).n_bytes <= len(data) + 24 * 2000
