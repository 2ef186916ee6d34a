"""Looks for a backbone among the tensors of a training: which prefix, and which of several.

In: tensors by their dotted names in the file.   Out: the Part that fits a model best, and in words what else there is.
Called by `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loffta.backbones.weights import StateDict
from loffta.errors import LofftaError, UsageError
from loffta.words import printable

# Which of several whole networks is meant: what its authors evaluate with. Averages, as timm prefers them; teachers of
# DINO (eval_linear.py: --checkpoint_key teacher), iBOT, DINOv2 and I-JEPA; MoCo's base encoder (main_lincls.py).
PREFERRED = {
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_model",
    "teacher",
    "target_encoder",
    "base_encoder",
    "encoder_q",
}
ASIDE = {"student", "momentum_encoder", "encoder_k"}
OPTIMIZER = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "step"}
GROUPS_SHOWN = 4


@dataclass(frozen=True)
class Part:
    """All tensors of a file below one prefix, without it."""

    prefix: str  # "" or "model.teacher.backbone."
    tensors: StateDict

    @property
    def name(self) -> str:
        """As a user writes it behind the #."""
        return self.prefix.removesuffix(".")

    @property
    def rank(self) -> int:
        """Less is better, by the words in its prefix."""
        words = self.prefix.split(".")
        return sum(word in ASIDE for word in words) - sum(word in PREFERRED for word in words)


@dataclass(frozen=True)
class Choice:
    """A part, and in words the parts that would have done as well."""

    part: Part
    converted: dict[str, Tensor]  # in the model's names, where they could be told
    others: tuple[str, ...] = ()


def find_parts(tensors: StateDict, least: int) -> list[Part]:
    """Every prefix with at least `least` tensors, the shortest first."""
    below: dict[str, dict[str, Tensor]] = {"": dict(tensors)}
    for name, tensor in tensors.items():
        words = name.split(".")
        for n in range(1, len(words)):
            prefix = ".".join(words[:n]) + "."
            below.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return [Part(prefix, found) for prefix, found in below.items() if not prefix or len(found) >= least]


def choose_part(
    tensors: StateDict,
    least: int,
    conversions: Sequence[Callable[[StateDict], dict[str, Tensor]]],
    score: Callable[[StateDict], int],
    *,
    wanted: str | None,
    where: Path,
) -> Choice:
    """The part of which most tensors fit the model; of equals the one whose name says that it is meant to be used.

    Args:
        least: tensors that a part has to have.
        conversions: each gives a part the model's names; a later one is tried where none of the parts fits before.
        score: how many tensors then have their place.
        wanted: what stands behind the # of --weights; None: nothing.
    Raises:
        UsageError: no such part, or several that are equally good and differ.
        LofftaError: the file is an optimizer's.
    """
    if all(name.rpartition(".")[2] in OPTIMIZER for name in tensors):
        raise LofftaError(
            f"it holds the state of an optimizer ({len(tensors)} tensors) and no weights",
            where=where,
            remedy="pass the file of the same training that holds the model",
        )
    parts = find_parts(tensors, least)
    if wanted is not None and not (parts := [part for part in parts if _is_called(part, wanted)]):
        raise UsageError(
            f"no network lies under '{wanted}' in the file",
            where=where,
            remedy=f"it holds {describe_groups(tensors, '')}",
        )
    fitting: list[tuple[Part, dict[str, Tensor]]] = []
    for convert in conversions:
        tried = [(part, convert(part.tensors)) for part in parts]
        scores = [score(converted) for _, converted in tried]
        fitting = [found for found, n in zip(tried, scores, strict=True) if n == max(scores) > 0]
        if fitting:
            break
    if not fitting:
        return Choice(parts[0], dict(parts[0].tensors))
    best: list[tuple[Part, dict[str, Tensor]]] = []
    for part, converted in sorted(fitting, key=lambda found: found[0].rank):
        if not any(_are_equal(converted, other) for _, other in best):
            best.append((part, converted))
    first, others = best[0][0], tuple(part.name or "what has no prefix" for part, _ in best[1:])
    if len(best) > 1 and best[1][0].rank == first.rank:
        raise UsageError(
            f"the file holds {len(best)} networks that fit: {', '.join((first.name or 'what has no prefix', *others))}",
            where=where,
            remedy=f"say which: --weights 'FILE#{first.name or others[0]}'",
        )
    return Choice(*best[0], others)


def describe_groups(names: Sequence[str] | StateDict, prefix: str) -> str:
    """Tensors outside a prefix, by what stands where they leave it: 'model.student (150 tensors), optimizer (300)'."""
    groups: dict[str, int] = {}
    kept = prefix.split(".")[:-1]
    for name in names:
        words = name.split(".")
        shared = 0
        while shared < min(len(kept), len(words)) and words[shared] == kept[shared]:
            shared += 1
        group = ".".join(words[: shared + 1])
        groups[group] = groups.get(group, 0) + 1
    shown = [f"{printable(group)} ({n} {'tensor' if n == 1 else 'tensors'})" for group, n in groups.items()]
    more = len(shown) - GROUPS_SHOWN
    return ", ".join(shown[:GROUPS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_called(part: Part, wanted: str) -> bool:
    return f".{wanted.strip('.')}." in f".{part.prefix}"


def _are_equal(one: StateDict, other: StateDict) -> bool:
    """The same network by two routes: through a prefix that the family's filter takes off, say."""
    return one.keys() == other.keys() and all(
        tensor is other[name] or torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
