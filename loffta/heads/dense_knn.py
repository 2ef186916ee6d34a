"""Patches that are remembered: the classes of the nearest training patches, no weights and no training.

In:  patch tokens of the chosen taps; once, class numbers of the training images.   Out: maps of any size, shares.
In-context scene understanding (Balazevic et al., NeurIPS 2023, arXiv 2306.01667), after open-hummingbird-eval, which
NeCo measures with: 30 neighbours by cosine, their patches' shares of classes weighted by a softmax at temperature 0.02.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from loffta.heads.dense import DenseBase, DenseRecipe
from loffta.heads.maps import count_channels, finest_size, join_grids, to_size
from loffta.heads.recipe import check_features, check_specs
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

_CELLS = 16 << 20  # similarities at a time: 64 MB


class DenseKnnRecipe(DenseRecipe, frozen=True):
    """One pass over the images; rate and decay are of no matter."""

    batch_size: PositiveInt = 16
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    neighbours: PositiveInt = 30
    temperature: PositiveFloat = 0.02
    memory: PositiveInt = 65_536  # patches at most, of all images alike; ours: the paper has 10,240,000

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `DenseKnnHead`."""
        return self.model_dump(include={"output_px", "neighbours", "temperature", "memory"})


class DenseKnnHead(DenseBase):
    """A memory of patches, which `remember` fills; it is saved as the weights of other heads are.

    Args:
        specs: features of kind "grid"; taps and backbones stand side by side on the finest grid.
        neighbours: that have a voice in a patch's classes.
        temperature: of the softmax over their cosines.
        memory: patches that are kept.
    """

    remembers: ClassVar[bool] = True
    cells: Float[Tensor, "M K"]  # of length 1
    shares: Float[Tensor, "M C"]  # of each class among a patch's labelled pixels

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        readout: Readout,
        *,
        rng: torch.Generator,  # noqa: ARG002
        output_px: int,
        neighbours: int = 30,
        temperature: float | int = 0.02,
        memory: int = 65_536,
    ) -> None:
        check_specs("dense-knn", ("grid",), specs)
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        self.neighbours, self.temperature, self.memory = neighbours, temperature, memory
        self.register_buffer("cells", torch.zeros(0, count_channels(specs)))
        self.register_buffer("shares", torch.zeros(0, readout.n_outputs))
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B H W K"]:
        """All taps on one grid, float32.

        Args:
            features: one [B, L, H, W, D] per spec.
        """
        check_features("dense-knn", self.specs, features)
        return join_grids(self.specs, features, self.size)

    def remember(
        self,
        prepared: Float[Tensor, "B H W K"],
        labels: Shaped[Tensor, "B S S"],
        n_images: int,
        rng: torch.Generator,
    ) -> None:
        """Patches of some training images; of each as many as `n_images` such leave room for, one at least.

        Which, `rng` draws, and prefers those of the image's rare classes. Patches without a label are left out.
        """
        cells = F.normalize(prepared.flatten(1, 2), dim=2)
        shares, known = self._patches(labels)
        image, place = _draw(shares, known, max(1, self.memory // n_images), rng)
        self._waiting.append((cells[image, place], shares[image, place]))

    def finish(self, rng: torch.Generator) -> None:
        """Behind the last image; of more patches than the memory has room for some are drawn."""
        cells, shares = (torch.cat(part) for part in zip(*self._waiting, strict=True))
        self._waiting = []
        if len(cells) > self.memory:
            kept = torch.randperm(len(cells), generator=rng, device=rng.device)[: self.memory]
            cells, shares = cells[kept], shares[kept]
        self.cells, self.shares = cells, shares

    def forward(self, prepared: Float[Tensor, "B H W K"], rng: torch.Generator | None = None) -> Maps:  # noqa: ARG002
        """Takes what `prepare` gave; shares of classes, 0 of all while nothing is remembered."""
        asked = F.normalize(prepared.flatten(0, 2), dim=1)
        found = asked.new_zeros(len(asked), self.readout.n_outputs)
        n_neighbours, n_asked = min(self.neighbours, len(self.cells)), max(1, _CELLS // max(1, len(self.cells)))
        with torch.autocast(asked.device.type, enabled=False):
            for first in range(0, len(asked) if n_neighbours else 0, n_asked):
                here = slice(first, first + n_asked)
                nearest = (asked[here] @ self.cells.T).topk(n_neighbours, dim=1)
                voices = (nearest.values / self.temperature).softmax(dim=1)
                found[here] = (voices[:, :, None] * self.shares[nearest.indices]).sum(dim=1)
        return to_size(found.view(*prepared.shape[:3], -1).permute(0, 3, 1, 2), self.output_px)

    def _patches(self, labels: Shaped[Tensor, "B S S"]) -> tuple[Float[Tensor, "B N C"], Bool[Tensor, "B N"]]:
        """Each class's share of every cell's labelled pixels, and whether it has any."""
        found = []
        for of_image in labels.long():
            known = of_image < self.readout.n_outputs
            hot = torch.zeros(self.readout.n_outputs, *of_image.shape, device=labels.device)
            hot.scatter_(0, of_image.where(known, 0)[None], known[None].float())
            found.append(F.adaptive_avg_pool2d(hot, self.size).flatten(1).T)
        counted = torch.stack(found)
        total = counted.sum(dim=2, keepdim=True)
        return counted / total.clamp(min=1e-12), total[:, :, 0] > 0

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Makes room for what is remembered: how much there is, the file alone says."""
        for name in ("cells", "shares"):
            if (kept := state_dict.get(prefix + name)) is not None and kept.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, torch.empty_like(kept, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _draw(
    shares: Float[Tensor, "B N C"], known: Bool[Tensor, "B N"], n_kept: int, rng: torch.Generator
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """Image and place of patches of each image: the lowest products of a random number and its classes' patches."""
    has = (shares > 0).float()
    common = (has * has.sum(dim=1, keepdim=True)).sum(dim=2)
    scores = (common * torch.rand(common.shape, generator=rng, device=common.device)).masked_fill(~known, torch.inf)
    value, place = scores.topk(min(n_kept, scores.shape[1]), dim=1, largest=False)
    image, nth = value.isfinite().nonzero(as_tuple=True)
    return image, place[image, nth]
