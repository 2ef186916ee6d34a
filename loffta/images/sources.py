"""Where images come from: a listing made without opening an image, and the bytes of one image by its key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from loffta.errors import UsageError, unknown_name
from loffta.images import coco, demo, folder, hugging_face, nyu, shards, table_file, torchvision_sets, voc, vtab
from loffta.images.files import FOLLOW, Place, is_there, user_path
from loffta.store.columns import SUFFIXES
from loffta.store.table import ImageTable


@runtime_checkable
class ImageSource(Protocol):
    """An image set that can be listed and read."""

    def listing(self) -> ImageTable:
        """Every image with its size, split and label, in a stable order."""
        ...

    def read(self, key: str) -> bytes:
        """The encoded bytes of one image; FileNotFoundError or OSError where they cannot be had."""
        ...


SOURCES: dict[str, Callable[[str], ImageSource]] = {
    "coco": coco.open_coco,
    "demo": demo.open_demo,
    "folder": folder.open_folder,
    "hf": hugging_face.open_hf,
    "nyu": nyu.open_nyu,
    "table": table_file.open_table,
    "torchvision": torchvision_sets.open_torchvision,
    "voc": voc.open_voc,
    "vtab": vtab.open_vtab,
    "wds": shards.open_shards,
}


def with_options(spec: str, *, image_root: str | None = None, follow_links: bool = False) -> str:
    """A source in the words that hold what its user opened: `table:FILE#root=DIR`, `folder:PATH#follow-links`.

    Raises:
        UsageError: a kind of source that has no such thing.
    """
    kind, colon, _ = spec.partition(":")
    path = user_path(spec)
    if not (colon and kind in SOURCES):
        is_image = path.suffix.lower() not in SUFFIXES and is_there(path, folder=False)
        kind = "folder" if is_there(path, folder=True) else "a single file" if is_image else "table"
    if image_root is not None and kind != "table":
        raise UsageError(f"--image-root is for tables, not for {kind}", where=f"SOURCE {spec}", remedy="leave it out")
    if follow_links and kind not in ("folder", "table"):
        raise UsageError(
            f"--follow-links is for folders and tables, not for {kind}", where=f"SOURCE {spec}", remedy="leave it out"
        )
    root = "" if image_root is None else f"#root={image_root}"
    return spec + root + FOLLOW * follow_links


def open_source(spec: str) -> ImageSource:
    """Opens an image set by its name, `<kind>:<what>`, or by the bare path of a folder or table.

    Raises:
        UsageError: no such kind of source, with the near names; or there is nothing of this name.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in SOURCES:
        return SOURCES[kind](rest)
    path = user_path(Place.parse(spec).path)
    if spec and is_there(path, folder=True):
        return folder.open_folder(spec)
    if path.suffix.lower() in SUFFIXES and (is_there(path, folder=False) or not colon):
        return table_file.open_table(spec)
    if colon:
        raise unknown_name("kind of image set", kind, SOURCES, where=f"SOURCE {spec}")
    raise UsageError(
        f"'{spec}' does not say what kind of image set it is, and is no folder and no .csv, .tsv or .parquet file",
        where="SOURCE",
        remedy=f"write <kind>:<what>, for example demo:digits, or the path of a folder or table that is there; "
        f"kinds: {', '.join(SOURCES)}",
    )
