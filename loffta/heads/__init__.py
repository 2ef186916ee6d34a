"""Heads: small modules on cached features, one file each, with their papers' recipes as defaults.

`train` asks the recipe which kinds of features to feed (`recipe.kinds()`), and builds the head with `build_head`, or
`build_dense_head` where it gives a map per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loffta.errors import UsageError, unknown_name
from loffta.heads.attentive import AttentiveHead, AttentiveRecipe
from loffta.heads.bicubic import BicubicHead, BicubicRecipe
from loffta.heads.combo import ComboHead, ComboRecipe
from loffta.heads.combo_deap import ComboDeapHead, ComboDeapRecipe
from loffta.heads.deap import DeapHead, DeapRecipe
from loffta.heads.deconv import DeconvHead, DeconvRecipe
from loffta.heads.dense import DenseBase, DenseRecipe
from loffta.heads.dense_knn import DenseKnnHead, DenseKnnRecipe
from loffta.heads.dense_linear import DenseLinearHead, DenseLinearRecipe
from loffta.heads.dpt import DptHead, DptRecipe
from loffta.heads.featup import FeatupHead, FeatupRecipe
from loffta.heads.fusion import FusionHead, FusionRecipe
from loffta.heads.head2toe import Head2ToeHead, Head2ToeRecipe
from loffta.heads.linear import LinearHead, LinearRecipe
from loffta.heads.loff import LoffHead, LoffRecipe
from loffta.heads.recipe import Recipe
from loffta.heads.scale import Scale
from loffta.heads.smp import SmpHead, SmpRecipe
from loffta.targets import Readout
from loffta.tokens import FeatureSpec


@runtime_checkable
class Head(Protocol):
    """What `train` and `evaluate` use of a head: an nn.Module with a few additions."""

    default_taps: ClassVar[str]  # the tap set of a store that is named without taps
    n_phases: ClassVar[int]  # trainings one after the other; 1 but for heads that select and then train anew

    @property
    def scale(self) -> Scale | None:
        """What the one output of a head that learns numbers means; None where there are classes."""

    def learn_values(self) -> None:
        """Gives it one, before it is trained."""

    def __init__(self, specs: Sequence[FeatureSpec], n_classes: int, *, rng: torch.Generator, **arguments: Any) -> None:
        """Draws every initial weight from `rng`, a CPU generator: same seed, same weights."""

    def prepare(self, features: Sequence[Tensor]) -> Any:
        """The part without weights: seeds that train side by side share its result."""

    def __call__(self, prepared: Any, rng: torch.Generator | None = None) -> Any:
        """Takes what `prepare` gave; the logits.

        `rng`, on the head's device, draws what is random in training (dropout, jitter); None, as in evaluation: none of
        it. The global generator has no part.
        """

    def penalty(self) -> Tensor | None:
        """What is added to the loss, its weight included; None where there is nothing."""

    def start_phase(self, phase: int, rng: torch.Generator) -> None:
        """Called before the phases 1, 2, ... of a head that has several; `rng` draws the new weights, on the CPU."""

    def no_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""

    def observe(self, prepared: Any) -> Float[Tensor, " X"] | None:
        """What else is to be known of a batch's images in evaluation, on their average: float64 on the CPU, or None."""

    def findings(self, observed: Float[Tensor, " X"] | None) -> dict[str, list[dict[str, Any]]]:
        """What the trained head tells of itself, for results.json: names with entries; none for most heads.

        An entry has a float as `value`, and the rest, which names what it is of, is the same for all seeds.

        Args:
            observed: the mean of `observe` over all images.
        """

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def train(self) -> Head: ...
    def eval(self) -> Head: ...
    def to(self, device: torch.device) -> Head: ...


class HeadEntry(NamedTuple):
    """One head as the command line knows it."""

    head: type[Head]
    recipe: type[Recipe]
    label: str | None = None  # what reports call it where its name alone would claim too much
    dense: bool = False  # it gives maps: a DenseBase, which is built by `build_dense_head`
    tasks: tuple[str, ...] | None = None  # dense tasks that it is for; None: all


HEADS: dict[str, HeadEntry] = {
    "linear": HeadEntry(LinearHead, LinearRecipe),
    "attentive": HeadEntry(AttentiveHead, AttentiveRecipe),
    "fusion": HeadEntry(FusionHead, FusionRecipe),
    "combo": HeadEntry(ComboHead, ComboRecipe),
    "loff": HeadEntry(LoffHead, LoffRecipe),
    "head2toe": HeadEntry(Head2ToeHead, Head2ToeRecipe),
    "smp": HeadEntry(SmpHead, SmpRecipe, label="smp (our approximation)"),
    "dense-linear": HeadEntry(DenseLinearHead, DenseLinearRecipe, dense=True),
    "deap": HeadEntry(DeapHead, DeapRecipe, dense=True),
    "combo-deap": HeadEntry(ComboDeapHead, ComboDeapRecipe, dense=True),
    "bicubic": HeadEntry(BicubicHead, BicubicRecipe, dense=True),
    "deconv": HeadEntry(DeconvHead, DeconvRecipe, dense=True),
    "featup": HeadEntry(FeatupHead, FeatupRecipe, dense=True),
    "dpt": HeadEntry(DptHead, DptRecipe, dense=True),
    "dense-knn": HeadEntry(DenseKnnHead, DenseKnnRecipe, dense=True, tasks=("segmentation",)),
}
IMAGE_HEADS = tuple(name for name, entry in HEADS.items() if not entry.dense)
DENSE_HEADS = tuple(name for name, entry in HEADS.items() if entry.dense)


def find_head(name: str) -> HeadEntry:
    """Looks a head up.

    Raises:
        UsageError: unknown name, with its nearest neighbours.
    """
    if name not in HEADS:
        raise unknown_name("head", name, HEADS, where="head")
    return HEADS[name]


def with_new_fields(name: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that an older loffta wrote, with the defaults of the fields that it did not know; `name` of the head."""
    entry = HEADS.get(name.removeprefix("online-"))  # `online-linear` is the linear probe
    known: dict[str, Any] = {} if entry is None else entry.recipe().model_dump(mode="json")  # type: ignore[call-arg]
    return {**known, **recipe}


def head_label(name: str) -> str:
    """What reports call a head."""
    return (HEADS[name].label if name in HEADS else None) or name


def build_head(name: str, specs: Sequence[FeatureSpec], n_classes: int, recipe: Recipe, seed: int) -> Head:
    """A new head on the CPU; the seed decides all of its weights and the global generator has no part.

    Args:
        n_classes: outputs; 0: the head learns numbers, with one output and a `Scale`.
        recipe: of this head's recipe class, resolved or not.
    Raises:
        UsageError: unknown head, another head's recipe, or features of the wrong kind.
    """
    entry = _find_kind(name, recipe, dense=False)
    rng = torch.Generator().manual_seed(seed)
    head = entry.head(specs, n_classes or 1, rng=rng, **recipe.head_arguments())
    if n_classes == 0:
        head.learn_values()
    return head


def build_dense_head(
    name: str, specs: Sequence[FeatureSpec], readout: Readout, recipe: DenseRecipe, seed: int
) -> DenseBase:
    """A new head that gives maps, on the CPU; the seed decides all of its weights.

    Args:
        specs: of the features that `recipe.kinds()` names; of a head that `needs_thumb`, the thumbnails come last.
        readout: what its outputs are for, see `DenseTask.readout`.
        recipe: of this head's recipe class, resolved or not.
    Raises:
        UsageError: unknown head, another head's recipe, features of the wrong kind, or a budget that is too small.
    """
    entry = _find_kind(name, recipe, dense=True)
    head = entry.head(specs, readout, rng=torch.Generator().manual_seed(seed), **recipe.head_arguments())  # type: ignore[arg-type]
    assert isinstance(head, DenseBase)
    return head


def _find_kind(name: str, recipe: Recipe, *, dense: bool) -> HeadEntry:
    """The head, if it is of the kind that is asked for and the recipe its own."""
    entry = find_head(name)
    if entry.dense != dense:
        gives = ("one answer per image", "a map per image")
        raise UsageError(
            f"head '{name}' gives {gives[entry.dense]}, and {gives[dense]} is asked for",
            where="head",
            remedy=f"use one of {', '.join(DENSE_HEADS if dense else IMAGE_HEADS)}",
        )
    if not isinstance(recipe, entry.recipe):
        raise UsageError(
            f"a {type(recipe).__name__} cannot build head '{name}'",
            where="recipe",
            remedy=f"pass a {entry.recipe.__name__}",
        )
    return entry
