"""Digests by pieces equal those over the whole, written down the obvious way."""

import hashlib
import json
import struct

import numpy as np
import pyarrow as pa
import pytest

from loffta.store import texts
from loffta.store.digests import columns_digest, digest_of
from loffta.store.texts import Names, Texts

N = 150  # longer than a list that may hold columns
KEYS = [f'k{i}"\\ü' for i in range(N)]


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
def test_the_json_is_that_of_the_whole(monkeypatch, piece):
    monkeypatch.setattr(texts, "PIECE", piece)
    sizes, splits = np.arange(N) * 3, ["val", "train"] * (N // 2)
    more = {"value": [None if i % 5 == 0 else i / 7 for i in range(N)], "labels": [[1, 2], None, []] * (N // 3)}
    plain = [KEYS, sizes.tolist(), splits, [], ["cat"], None, "word", 3, [[4, "gone"]], more]
    keys = Texts(pa.chunked_array([KEYS[:40], KEYS[40:]]))
    columns = [keys, sizes, Names.of(splits), np.arange(0), ("cat",), None, "word", 3, [(4, "gone")], more]
    whole = json.dumps(plain, sort_keys=True).encode()
    assert digest_of(columns) == hashlib.blake2b(whole, digest_size=16).hexdigest()


def by_hand(said, keys, numbers, splits, optional):
    """Columns as docs/store-format.md has them, a value at a time."""
    known = list(dict.fromkeys(splits))
    first = hashlib.blake2b(json.dumps([said, known]).encode(), digest_size=16).hexdigest().encode()
    parts = [first, *(struct.pack("<i", len(key.encode())) for key in keys), *(key.encode() for key in keys)]
    parts += [struct.pack("<q", number) for column in numbers for number in column]
    parts += [struct.pack("<i", known.index(split)) for split in splits]
    if optional:
        text = json.dumps(optional, sort_keys=True).encode()
        parts.append(hashlib.blake2b(text, digest_size=16).hexdigest().encode())
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def test_columns_are_told_by_their_bytes():
    keys, sizes, splits = KEYS[:4], [5, 6, 7, 8], ["b", "a", "a", "b"]
    for size in (1, 3, 4):
        chunks = pa.chunked_array([keys[i : i + size] for i in range(0, 4, size)])
        for optional in ({}, {"value": [1.5, None, 2.0, 3.0]}):
            found = columns_digest(["d", "cat"], chunks, [np.array(sizes)], Names.of(splits), optional)
            assert found == by_hand(["d", "cat"], keys, [sizes], splits, optional)
    sliced = pa.array(["x", *keys, "y"]).slice(1, 4)
    assert columns_digest([], sliced, [], Names.of(splits), {}) == by_hand([], keys, [], splits, {})
    assert columns_digest([], pa.array([], pa.string()), [], Names.of([]), {}) == by_hand([], [], [], [], {})
