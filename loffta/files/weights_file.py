"""Reads whatever file a training left, and never runs what is pickled in it; says what it found where that fails.

In: a path.   Out: every tensor in the file by one dotted name, wrappers and nested dicts included. Called by
`backbones.checkpoint`, which looks for a backbone among them, and by `training.upsampler`.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from loffta.errors import LofftaError
from loffta.words import brief, printable

_DEPTH = 16  # of nested dicts; a pickle can hold itself
_HEAD = 1 << 16  # bytes that are looked at
_LEGACY_PICKLES = 4  # magic, protocol, system, object: before torch 1.6 they follow each other, then come the storages
_SAFE_LENGTH = 100 << 20  # of safetensors' header: the library's own bound
_MAGIC = {
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ": "an xz archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x93NUMPY": "a single numpy array",
    b"PAR1": "a parquet file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GGUF": "a GGUF file (llama.cpp)",
}


class Inert:
    """Stands for every pickled object that is no tensor: options, numpy scalars, modules. It keeps, and does nothing.

    torch runs what it is told is safe (numpy's own functions trust what they are given); so it is told of this class,
    under their names.
    """

    origin = ""  # module and name of what it stands for

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def is_npz(path: Path) -> bool:
    """Whether a file is a zip of numpy arrays, whatever its name."""
    names = _zip_names(path) or [""]
    return all(name.endswith(".npy") for name in names)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, by their place in it: {"model": {"a": t}} -> "model.a".

    Safetensors and what torch.save wrote, told apart by their bytes. Modules that were pickled whole are read as their
    state dicts.

    Raises:
        LofftaError: it is neither, damaged, or holds no tensor; what it is instead is said as far as it can be seen.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    what = _foreign(path, head)
    if what is None:
        content = _read_safetensors(path) if _is_safetensors(head) else _read_pickle(path)
        tensors: dict[str, Tensor] = {}
        _collect(content, "", tensors, _DEPTH)
        if tensors:
            return tensors
        what = f"it holds {_describe(content)}, and no tensor with a name"
    raise _unreadable(what, path)


def _unreadable(what: str, path: Path) -> LofftaError:
    remedy = "pass a .safetensors file, or a .pth, .pt, .ckpt or .bin that holds a state dict; was the download whole?"
    return LofftaError(f"cannot read the weights: {what}", where=path, remedy=remedy)


def _foreign(path: Path, head: bytes) -> str | None:
    """What a file is that holds no weights; None where it may."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is the pointer that git-lfs left in place of the file: run `git lfs pull` where it came from"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        title = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
        named = f" ('{_begins(title[1])}')" if title else ""
        return f"it is a web page{named}: was a login or a confirmation asked for?"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return f"it is {what}"
    if head.startswith(b"PK"):
        return _foreign_zip(path)
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it"
    if _is_safetensors(head) or head[:1] == b"\x80":  # a pickle of protocol 2 and later
        return None
    if _is_text(head):
        return f"it is a text that begins with '{_begins(head)}'"
    return "its first bytes are those of no format that weights come in, or they are damaged"


def _foreign_zip(path: Path) -> str | None:
    names = _zip_names(path)
    if names is None:
        return "it is a zip archive, as torch writes it, that is cut off or damaged"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return "it is a TorchScript program, which would have to be run: save its state_dict() instead"
    if "data.pkl" in last:
        return None
    return f"it is a zip archive of {len(names)} files, the first '{printable(names[0]) if names else ''}'"


def _zip_names(path: Path) -> list[str] | None:
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then a JSON object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFE_LENGTH


def _is_text(head: bytes) -> bool:
    try:
        text = head[:512].decode(errors="strict" if len(head) <= 512 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def _begins(data: bytes) -> str:
    """The beginning of a text that somebody else wrote, on one line."""
    return printable(" ".join(data[:200].decode(errors="replace").split())[:60])


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except Exception as error:  # the library's own, and the system's
        raise _unreadable(_reason(error), path) from None


def _read_pickle(path: Path) -> Any:
    """By torch's restricted unpickler, for which every name that it does not know means an Inert."""
    try:
        names = _globals_of(path)
        inert: list[Any] = [(type("Inert", (Inert,), {"origin": name}), name) for name in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
            warnings.simplefilter("ignore")  # of protocols
            with path.open("rb") as file:  # of a path torch would believe the name
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged and hostile bytes torch raises whatever comes first
        raise _unreadable(_reason(error), path) from None  # torch's own words advise to unpickle


def _globals_of(path: Path) -> set[str]:
    """Names in a file's pickles, by disassembly; for those that torch knows it takes its own all the same."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    with path.open("rb") as file:
        return {name for _ in range(_LEGACY_PICKLES) for name in _globals_in(file)}


def _globals_in(file: BinaryIO) -> list[str]:
    """Of the next pickle in a file, under the names of Python 3, as torch looks them up."""
    try:
        found = [str(arg).partition(" ") for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"]
    except ValueError:  # a plain pickle is one, not four
        return []
    pairs = [NAME_MAPPING.get((m, name), (IMPORT_MAPPING.get(m, m), name)) for m, _, name in found]
    return [f"{module}.{name}" for module, name in pairs]


def _reason(error: Exception) -> str:
    """Why torch or safetensors gave up, without torch's advice to run the pickle."""
    text = str(error)
    if blocked := re.search(r"unsupported GLOBAL (\S+) whose module", text):
        return f"it holds pickled code ({printable(blocked[1])}), which is never run"
    if "weights_only" in text or "magic number" in text:
        return "it is no file that torch.save wrote, or damaged, or holds pickled objects that are never loaded"
    return f"{type(error).__name__}: {printable(text.splitlines()[0][:200])}" if text else type(error).__name__


def _collect(value: Any, name: str, found: dict[str, Tensor], depth: int) -> None:
    """Puts every tensor below `value` into `found`; what is no tensor and no mapping is passed over."""
    if isinstance(value, Tensor):
        if name:
            found.setdefault(name, value)
        return
    if isinstance(value, Inert) and isinstance(value.state, Mapping):  # perhaps a module that was pickled whole
        parts = [value.state.get(key) for key in ("_parameters", "_buffers", "_modules")]
        value = {key: item for part in parts if isinstance(part, Mapping) for key, item in part.items()}
    if not isinstance(value, Mapping) or not depth:
        return
    for key, item in value.items():
        if isinstance(key, str | int):
            _collect(item, f"{name}.{key}" if name else str(key), found, depth - 1)


def _describe(content: Any) -> str:
    if isinstance(content, Inert):
        return f"an object of {printable(content.origin)}"
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(brief(key) for key in list(content)[:5])}" if content else "an empty dict"
    return f"one {type(content).__name__}"
