"""A folder that several pipelines may share, as three tasks on one image set do: whose report and summary are which.

In: the folder and a pipeline file.   Out: what the names of its report and summary end with: nothing for the first
pipeline of the folder, -NAME for each further one. Caches and runs have names of their own, and may serve several.
"""

from __future__ import annotations

import json
from pathlib import Path

from loffta.errors import LofftaError
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import make_folder, replace_file
from loffta.pipeline.stages import short_hash
from loffta.words import file_name


def find_suffix(out: Path, file: Path) -> str:
    """What a pipeline's names end with, or would end with: nothing is written.

    Raises:
        LofftaError: what the folder says of its pipelines cannot be read.
    """
    known, key = _read(out), _key(file)
    if key in known:
        return known[key]
    name = file_name(file.stem)
    free = (suffix for suffix in ("", f"-{name}", f"-{name}-{short_hash(key)}") if suffix not in known.values())
    return next(free)


def keep_suffix(out: Path, file: Path) -> None:
    """Writes down which pipelines share the folder."""
    known = _read(out)
    if _key(file) not in known:
        make_folder(out)
        replace_file(_path(out), json.dumps(known | {_key(file): find_suffix(out, file)}, indent=2).encode())


def _key(file: Path) -> str:
    """The file's name and its folder's: it stays the same where both are moved, or are seen under another path."""
    return "/".join(file.resolve().parts[-2:])


def _path(out: Path) -> Path:
    return out / "pipelines.json"


def _read(out: Path) -> dict[str, str]:
    path = _path(out)
    if not path.exists():
        return {}
    try:
        known = from_json(read_bytes(path))
        if not isinstance(known, dict) or not all(
            isinstance(suffix, str) and suffix in ("", f"-{file_name(suffix[1:])}") for suffix in known.values()
        ):
            raise ValueError("no names")
        return known
    except ValueError as error:
        raise LofftaError(
            f"cannot read which pipelines share this folder ({error})",
            where=path,
            remedy="delete the file: the next pipeline that runs here counts as the first",
        ) from error
