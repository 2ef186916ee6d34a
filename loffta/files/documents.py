"""JSON and YAML that somebody else may have written: bounded in size, depth and repetition before anyone walks them.

In: text or a path.   Out: plain Python values, or a ValueError in words. Callers add where it was and what to do.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20  # results of 10,000 classes are a tenth of it
MAX_YAML_BYTES = 1 << 20  # PyYAML reads about 1 MB/s
MAX_DEPTH = 32  # loffta's own documents have 8 levels
MAX_NODES = 100_000  # of YAML, every alias counted as what it stands for


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a small regular file; a pipe or a device would never end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than any that loffta writes.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"it is larger than {max_bytes >> 20} MiB")
        return file.read(status.st_size + (1 << 16))  # never `max_bytes`: Python would take so much memory first


def from_json(
    text: bytes | str, *, max_bytes: int = MAX_BYTES, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """What a JSON document says.

    Args:
        max_bytes: for documents of others that may be larger than any of loffta's, as COCO's annotations are.
        object_hook: as json.loads has it.
    Raises:
        ValueError: it is no JSON, or deeper than any that loffta writes, or larger.
    """
    if len(text) > max_bytes:
        raise ValueError(f"the JSON is larger than {max_bytes >> 20} MiB")
    try:
        values = json.loads(text, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError(f"the JSON is nested more than {MAX_DEPTH} deep") from error
    _check_depth(values)
    return values


def from_yaml(text: str) -> Any:
    """What a YAML document says, by the safe loader alone.

    Raises:
        ValueError: it is no YAML, too deep or too large, or its aliases stand for more than a person writes.
    """
    import yaml  # the commands that only look at a cache read JSON alone

    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"the YAML is larger than {MAX_YAML_BYTES >> 20} MiB")
    try:
        _check_events(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _inside(value)]
        if not level:
            return
    raise ValueError(f"the JSON is nested more than {MAX_DEPTH} deep")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value
    return [part for part in parts if isinstance(part, (dict, list))]


def _check_events(text: str) -> None:
    """Counts what the document would become, without making it: YAML's parser is a loop, its composer recurses."""
    import yaml

    sizes: dict[str, int] = {}  # of finished anchors
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at which the node began
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise ValueError(f"the alias *{event.anchor} stands inside its own anchor")
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, began = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - began
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1 + len(event.value) // 1000
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"the YAML is nested more than {MAX_DEPTH} deep")
        if count > MAX_NODES:
            raise ValueError(f"the YAML stands for more than {MAX_NODES:,} values")
