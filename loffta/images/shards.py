"""`wds:PATTERN`: WebDataset shards, tar files of samples `<key>.jpg` + `<key>.cls`, read in any order by their offsets.

PATTERN knows {000..009}, {a,b}, *, ? and [...]. The listing reads the shards' headers and labels, no image. The split
is in the shard's name or its folder's. Labels: `.cls`, else the field `labels`, `label` or `value` (a number to learn)
of `.json`, else `.txt`.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loffta.errors import UsageError, refuse
from loffta.files.documents import from_json
from loffta.images.endings import photos
from loffta.images.files import FileRoot, file_fault, key_fault, to_key, user_path
from loffta.machine.progress import say
from loffta.store.label_cells import Labels, from_cells, from_numbers
from loffta.store.names import split_name
from loffta.store.table import ImageTable
from loffta.words import first_of

MAX_SHARDS = 100_000
MAX_LABEL_BYTES = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_WILD = re.compile(r"[{*?[]")
_LABELS = (".cls", ".json", ".txt")
_MAX_NAME = 64  # a longer .txt is a caption


@dataclass(frozen=True)
class Number:
    """What stands in the field `value`: a number, whole or not."""

    cell: Any


@dataclass
class Sample:
    """What one shard holds of one key."""

    image: str = ""  # the member's name
    offset: int = 0
    size: int = 0
    labels: dict[str, Any] = field(default_factory=dict)  # by ending


class Shards:
    """The images of some tar files; keys are <shard without .tar>/<member>."""

    def __init__(self, root: FileRoot, shards: Sequence[str], source: str) -> None:
        self._root, self._shards, self._source = root, shards, source

    def listing(self) -> ImageTable:
        """The samples with an image, in the order of the shards and of their members.

        Raises:
            UsageError: compressed or broken shards, keys that cannot be used: all of it at once.
        """
        index = self._index
        keys = list(index)
        splits = [_split_of(shard) for shard, _ in index.values()]
        faults: list[str] = []
        labels = self._labels([sample for _, sample in index.values()], keys, faults)
        refuse(faults, where=f"SOURCE {self._source}", remedy="mend the labels and write the shards again")
        table = labels.table(self._source, keys, [sample.size for _, sample in index.values()], splits)
        counts = ", ".join(f"{split} {n}" for split, n in table.split_sizes().items())
        say(f"{self._source}: {len(self._shards)} shards; images: {counts}; classes: {len(table.classes) or 'none'}")
        return table

    def read(self, key: str) -> bytes:
        """The bytes of one image by one pread; OSError where there is no such key or its shard has become shorter."""
        if key not in self._index:
            raise FileNotFoundError(f"there is no {key!r}")
        shard, sample = self._index[key]
        descriptor = os.open(self._root.locate(shard), os.O_RDONLY)
        try:
            return _pread(descriptor, sample.size, sample.offset)
        finally:
            os.close(descriptor)

    @cached_property
    def _index(self) -> dict[str, tuple[str, Sample]]:
        """(shard, sample) by key."""
        faults: list[str] = []
        without: list[str] = []
        index: dict[str, tuple[str, Sample]] = {}
        for shard in self._shards:
            for name, sample in self._samples(shard, faults).items():
                key = f"{shard.removesuffix('.tar')}/{sample.image}"
                if not sample.image:
                    without.append(f"{shard}: {name}")
                elif key in index:
                    other, first = index[key]
                    faults.append(f"{shard}: {sample.image!r} and {first.image!r} of {other} have one key")
                else:
                    index[key] = shard, sample
        refuse(faults, where=f"SOURCE {self._source}", remedy="mend the shards or download them again")
        if without:
            say(f"{self._source}: skipped {len(without)} samples without an image: {first_of(without, ', ')}")
        if not index:
            raise UsageError(
                "no images in these shards",
                where=f"SOURCE {self._source}",
                remedy=f"members are named <key>.<ending>; endings of images are {' '.join(sorted(photos()))}",
            )
        return index

    def _samples(self, shard: str, faults: list[str]) -> dict[str, Sample]:
        """What one shard holds, by key in the order of its members."""
        samples: dict[str, Sample] = {}
        _, fault = file_fault(self._root, shard)
        fault = fault or key_fault(shard)
        if fault:
            faults.append(f"{shard!r}: {fault}")
            return {}
        path = self._root.locate(shard)
        try:
            if kind := _compression(path):
                faults.append(
                    f"{shard} is compressed with {kind}: to read one image of it all before it must be unpacked; "
                    "unpack it to a plain .tar"
                )
                return {}
            with tarfile.open(path, "r:") as tar:
                n_bytes = path.stat().st_size
                for member in tar:
                    _take(tar, member, n_bytes, samples, shard, faults)
                _check_end(path, tar.offset)
        except (OSError, tarfile.TarError, ValueError, UnicodeError) as error:
            faults.append(f"{shard} is no whole tar file ({error})")
        return samples

    def _labels(self, samples: list[Sample], keys: list[str], faults: list[str]) -> Labels:
        """The first kind of label that a sample has; texts only where they are names, and nothing else is there."""
        cells = [next((s.labels[ending] for ending in _LABELS if ending in s.labels), None) for s in samples]
        texts = [s.labels[".txt"] for s in samples if set(s.labels) == {".txt"}]
        if any("\n" in text or len(text) > _MAX_NAME for text in texts):
            say(f"{self._source}: the .txt members are captions, not labels")
            cells = [None if set(s.labels) == {".txt"} else cell for s, cell in zip(samples, cells, strict=True)]
        if any(isinstance(cell, Number) for cell in cells):
            return from_numbers([cell.cell if isinstance(cell, Number) else cell for cell in cells], keys, faults)
        return from_cells(cells, keys, faults)


def _take(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    n_bytes: int,
    samples: dict[str, Sample],
    shard: str,
    faults: list[str],
) -> None:
    """Adds one member of a shard to its sample, or a fault."""
    fault = key_fault(member.name)
    name = member.name if fault else to_key(member.name)
    file = name.rpartition("/")[2]
    if member.isdir() or file.startswith("."):
        return
    ending = "".join(file.lower().partition(".")[1:])
    key = name[: len(name) - len(ending)]
    if ending not in photos() and ending not in _LABELS:
        return
    place = f"{shard}: {name!r}"
    sample = samples.setdefault(key, Sample())
    if fault:
        faults.append(f"{place}: {fault}")
    elif not member.isreg() or member.issparse():
        faults.append(f"{place}: it is no regular file")
    elif member.offset_data + member.size > n_bytes:
        faults.append(f"{place}: the shard ends before it")
    elif (ending in photos() and sample.image) or ending in sample.labels:
        faults.append(f"{place}: a second {'image' if ending in photos() else ending} of sample {key!r}")
    elif ending in photos():
        sample.image, sample.offset, sample.size = name, member.offset_data, member.size
    elif member.size > MAX_LABEL_BYTES:
        faults.append(f"{place}: {member.size} bytes are no label")
    else:
        content = tar.extractfile(member)
        assert content is not None, "a regular member has content"
        try:
            sample.labels[ending] = _cell(ending, content.read())
        except ValueError as error:
            faults.append(f"{place}: no label ({error})")


def _cell(ending: str, data: bytes) -> Any:
    """The label in one member: text, a number, a list of them, a Number to learn, or None.

    Raises:
        ValueError: broken text or JSON.
    """
    text = data.decode("utf-8")
    if ending == ".txt":
        return text.strip()[: _MAX_NAME + 1]  # enough to see that it is a caption
    if ending == ".cls":
        return text
    content = from_json(text)
    if isinstance(content, dict) and "value" in content and not {"labels", "label"} & set(content):
        return Number(content["value"])
    if isinstance(content, dict):
        content = content.get("labels", content.get("label"))
    if isinstance(content, dict):
        raise ValueError("the label is an object")
    return content


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    parts = []
    while size:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise OSError("the shard ends before it")
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def _check_end(path: Path, offset: int) -> None:
    """Raises ValueError where the members do not end in a block of zeros: tarfile takes any rubbish for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(1 << 16)
    if len(rest) < tarfile.BLOCKSIZE or any(rest):
        raise ValueError("it breaks off" if len(rest) < tarfile.BLOCKSIZE else f"no member at byte {offset}")


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(8)
    return next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)


def _split_of(shard: str) -> str:
    """The first word of the shard's name that is a split's, else its folder's name, else train."""
    *folders, name = shard.removesuffix(".tar").split("/")
    words = [*re.split(r"[^a-zA-Z]+", name), *folders[-1:]]
    return next((split for word in words if (split := split_name(word))), "train")


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{0..2}{x,y}` as a shell expands it: a0x a0y a1x ... Numbers keep their leading zeros."""
    choices: list[Sequence[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        choices.append([pattern[end : match.start()]])
        numbers = _RANGE.fullmatch(match[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            step = 1 if first <= last else -1
            wide = itertools.islice(range(first, last + step, step), MAX_SHARDS + 1)
            choices.append([f"{i:0{len(numbers[1])}d}" for i in wide])
        else:
            choices.append(match[1].split(","))
        end = match.end()
    choices.append([pattern[end:]])
    return ("".join(parts) for parts in itertools.product(*choices))


def open_shards(text: str) -> Shards:
    """The shards that a pattern means; each name that is no glob must be there.

    Raises:
        UsageError: a shard is missing, or there is none.
    """
    where = f"SOURCE wds:{text}"
    names = list(itertools.islice(expand_braces(text), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise UsageError(f"the pattern means over {MAX_SHARDS} shards", where=where, remedy="narrow its braces")
    found = [(name, sorted(glob.glob(str(user_path(name))))) for name in names if name]  # noqa: PTH207  any root
    missing = [repr(name) for name, paths in found if not paths]
    paths = [Path(os.path.abspath(path)) for _, paths in found for path in paths]  # noqa: PTH100  links unfollowed
    if missing or not paths:
        raise UsageError(
            f"there is no shard {first_of(missing, ', ') or repr(text)}",
            where=where,
            remedy=f"give tar files, as in wds:shards/train-{{000..009}}.tar; relative ones start at {Path.cwd()}",
        )
    pattern = os.path.abspath(user_path(text))  # noqa: PTH100
    root = Path(_WILD.split(pattern)[0].rpartition("/")[0] or "/")
    while split_name(root.name):  # the split must stay in sight
        root = root.parent
    shards = list(dict.fromkeys(os.path.relpath(path, root) for path in paths))
    return Shards(FileRoot(root), shards, f"wds:{pattern}")
