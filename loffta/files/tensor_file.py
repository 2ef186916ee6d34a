"""Tensors in one safetensors file, with a checksum over all that it says: safetensors has none of its own.

In: named tensors and a few words.   Out: the same, or a ValueError in words where a bit of the file is another. Heads,
backbones and checkpoints are such files; nothing in them is pickled. What the file's metadata say: `crc32c` (over the
state, then every tensor's name, dtype, shape and bytes, by name), and a checkpoint's `format` and `state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import crc32c
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import replace_file

FORMAT = 1
_MAX_BYTES = 1 << 40


class NewerFormat(ValueError):
    """The file is of a loffta that is newer than this one."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: str | None = None) -> None:
    """Replaces the file at once, durably.

    Args:
        state: what else is kept, and stands under the same checksum.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"crc32c": str(_checksum(plain, state or ""))}  # alone: safetensors writes several in any order
    if state is not None:
        metadata |= {"format": str(FORMAT), "state": state}
    replace_file(path, save(plain, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """What `write_tensors` wrote; files of older versions, without a checksum, are taken as they are.

    Raises:
        OSError: the file is not there, or cannot be read.
        NewerFormat: as it says.
        ValueError: it is damaged, or was written by something else.
    """
    data = read_bytes(path, _MAX_BYTES)
    try:
        header = from_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__")  # none: a head of a version that had no checksums
        if metadata is not None and int(metadata.get("format", FORMAT)) > FORMAT:
            raise NewerFormat(f"format {metadata['format']}, and this loffta knows {FORMAT}")
        tensors = load(data)
        state = None if metadata is None else metadata.get("state")
        if metadata is not None and _checksum(tensors, state or "") != int(metadata["crc32c"]):
            raise ValueError("its checksum is wrong")
    except NewerFormat:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return tensors, state


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    checksum: int = crc32c.crc32c(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = crc32c.crc32c(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = crc32c.crc32c(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum
