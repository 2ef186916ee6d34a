"""Downloads hub weights into the local Hugging Face cache, where `extract` finds them without a network.

In: the name of a backbone.   Out: the file, and the environment variable under which another machine sees it.
Called by `loffta fetch` on a login node; `weights.find_file` does the work, the same that `extract` calls.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from loffta.backbones.weights import find_file, locate
from loffta.errors import LofftaError


@dataclass(frozen=True)
class Fetched:
    """Weights in the local cache."""

    timm_id: str
    path: Path
    n_bytes: int
    downloaded: bool  # False: they were there, and the network was left alone


def fetch(timm_id: str) -> Fetched:
    """Finds or downloads the weights that `--weights hub` would load.

    Raises:
        UsageError: timm does not know the model.
        LofftaError: timm names no hub weights for it, or the hub does not give them; the remedy fits the reason.
    """
    was_there = locate("hub", timm_id)[0] is not None
    try:
        path = find_file("hub", timm_id)
    except LofftaError as error:
        if error.__cause__ is None:
            raise
        raise LofftaError(error.what, where=error.where, remedy=_remedy(error.__cause__, error.where)) from error
    return Fetched(timm_id, path, path.stat().st_size, not was_there)


def _remedy(cause: BaseException, where: str) -> str:
    """What to do about an error of the hub client; gated is a kind of not found, not in the cache another."""
    or_else = "or get the file another way and pass --weights PATH to extract"
    page = f"{constants.ENDPOINT}/{where.removeprefix('hub file ').rpartition('/')[0]}"
    if isinstance(cause, OfflineModeIsEnabled):
        return f"unset HF_HUB_OFFLINE where there is a network, {or_else}"
    if isinstance(cause, GatedRepoError):
        return f"accept the licence at {page}, log in with `hf auth login` and run this again, {or_else}"
    if isinstance(cause, RepositoryNotFoundError):
        return f"look whether {page} is there; if it is private, log in with `hf auth login`; {or_else}"
    if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        return f"see at {page} which files there are: loffta loads no pickles; {or_else}"
    return f"run this on a machine with a network and enough disk, {or_else}"


def environment() -> str:
    """`NAME=VALUE` that makes another process use this cache: HF_HOME, or HF_HUB_CACHE where that was set apart."""
    home, cache = Path(constants.HF_HOME).absolute(), Path(constants.HF_HUB_CACHE).absolute()
    name, value = ("HF_HOME", home) if cache == home / "hub" else ("HF_HUB_CACHE", cache)
    return f"{name}={shlex.quote(str(value))}"
