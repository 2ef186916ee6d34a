"""Files of weights: a bit that is another is found, wherever it is."""

import numpy as np
import pytest
import torch
from safetensors.torch import save

from loffta.errors import LofftaError
from loffta.files.tensor_file import read_tensors, write_tensors
from loffta.runs.run import load_head

WEIGHTS = {"classify.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "classify.bias": torch.zeros(3).half()}


def test_a_bit_of_a_head_that_is_another_is_found(tmp_path):
    """Flipped one by one: the file is refused, or its weights are the same (padding, a name that says nothing)."""
    path = tmp_path / "head.safetensors"
    write_tensors(path, WEIGHTS)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    kept, messages = [], set()
    bits = range(0, 8 * len(whole), 13)  # of every third byte one
    for bit in bits:
        flipped = whole.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped.tobytes())
        try:
            found = load_head(path)
        except LofftaError as error:
            messages.add((error.what.partition(" (")[0], error.remedy))
            continue
        assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())
        kept.append(bit // 8)
    remedy = "delete it and run the run's `loffta train` again: it trains them anew"
    assert messages == {("this file of trained weights is damaged", remedy)}
    start = len(whole) - sum(tensor.nbytes for tensor in WEIGHTS.values())
    assert len(kept) < 0.05 * len(bits)
    assert max(kept, default=0) < start, "a weight of another value passed"


def test_heads_of_older_versions_have_no_checksum(tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_bytes(save(WEIGHTS))
    assert load_head(path).keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (6).to_bytes(8, "little") + b'["a"] ',
        (40_000).to_bytes(8, "little") + b"[" * 40_000,
        save(WEIGHTS, {"format": "1"}),
        save(WEIGHTS, {"format": "one", "crc32c": "5"}),
        save(WEIGHTS)[:-3],
    ],
    ids=range(8),
)
def test_what_is_no_such_file(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"\w"):
        read_tensors(path)


def test_a_state_stands_under_the_checksum(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, WEIGHTS, '{"epoch": 3}')
    assert read_tensors(path)[1] == '{"epoch": 3}'
    path.write_bytes(path.read_bytes().replace(b'\\"epoch\\": 3', b'\\"epoch\\": 4'))
    with pytest.raises(ValueError, match="checksum is wrong"):
        read_tensors(path)
