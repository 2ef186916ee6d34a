"""A published upsampler on its way into heads: the file is read once, known by its digest, and not needed afterwards.

In:  the recipe of `featup`, and its features.   Out: the recipe with the file's digest; heads that hold its weights.
Called by `train`, before a run is begun, and by `members`. What is in the file, `heads.jbu_stack` knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from loffta.errors import UsageError
from loffta.files.weights_file import read_tensors
from loffta.heads.dense import DenseBase
from loffta.heads.featup import FeatupHead, FeatupRecipe
from loffta.heads.jbu_stack import head_state
from loffta.heads.recipe import Recipe
from loffta.tokens import FeatureSpec

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def with_upsampler(recipe: AnyRecipe, specs: Sequence[FeatureSpec]) -> AnyRecipe:
    """The recipe with the whole path and the digest of its upsampler, if it has one that fits the features.

    Raises:
        UsageError: no such file, another than the digest of the recipe says, or none of FeatUp's for these features.
        LofftaError: the file cannot be read as weights.
    """
    if not isinstance(recipe, FeatupRecipe) or recipe.upsampler is None:
        return recipe
    path = Path(recipe.upsampler).expanduser().absolute()
    if not path.is_file():
        raise UsageError("there is no such file", where=path, remedy="check the path given to --set upsampler=FILE")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if recipe.upsampler_digest not in (None, digest):
        raise UsageError(
            f"this file has changed: its digest is {digest}, not {recipe.upsampler_digest}",
            where=path,
            remedy="bring the old file back, or leave upsampler_digest out",
        )
    _read(path, digest, specs[0].dim)
    return recipe.model_copy(update={"upsampler": str(path), "upsampler_digest": digest})


def take_upsampler(head: DenseBase, recipe: Recipe) -> None:
    """Gives a new head the weights that its recipe names; other heads nothing."""
    if isinstance(recipe, FeatupRecipe) and recipe.upsampler is not None:
        assert isinstance(head, FeatupHead) and recipe.upsampler_digest is not None, "see `with_upsampler`"
        path, dim = Path(recipe.upsampler), head.specs[0].dim
        head.load_state_dict(head.state_dict() | _read(path, recipe.upsampler_digest, dim))


@lru_cache(maxsize=1)  # seeds and settings of a search ask for the same one
def _read(path: Path, digest: str, dim: int) -> dict[str, Tensor]:  # noqa: ARG001  the digest keeps files apart
    return head_state(read_tensors(path), dim, where=str(path))
