"""DeAP's masked cross-attention: positions ask, cells answer, and a bell around every position says how far it looks.

In:  cells [B, H, W, K] and the size of the query grid.   Out: maps [B, dim, Hq, Wq]. Called by `deap`, `combo-deap`.
After the official release, where its code and its paper's prose differ after the code: docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loffta.heads.block import make_torch_linear
from loffta.heads.maps import CODE_DIM, code_positions, place_cells

Mask: TypeAlias = Literal["own", "shared", "none", "only"]
SIGMA = 0.05  # of every head at the start

# scores that are held at a time: a step keeps about three tensors of this size, whatever the grids. glibc gives blocks
# above 32 MiB back at once: at 37 x 37 cells, 448 px and 32 images a step takes 1.1 GiB; with 32 MiB it took 4.3
_PART_BYTES = {"cpu": 64 << 20}
_PART_BYTES_GPU = 256 << 20


def mask_bias(
    sigma: Float[Tensor, " h"], queries: Float[Tensor, "Q 2"], cells: Float[Tensor, "N 2"]
) -> Float[Tensor, "h Q N"]:
    """What is added to the scores: a normal density of the *squared* distance, with one sigma per head.

    exp(-(d^2 / sigma)^2 / 2) / (sigma sqrt(2 pi)): the release squares the squared distance once more, where the paper
    has exp(-d^2 / (2 sigma^2)). At sigma 0.05 it is 8 where query and cell coincide, half of it at a distance of 0.24.
    """
    squared = (queries[:, None] - cells).square().sum(-1)
    sigma = sigma[:, None, None]
    bias: Tensor = torch.exp(-0.5 * (squared / sigma).square()) / (sigma * math.sqrt(2 * math.pi))
    return bias


class MaskedAttention(nn.Module):
    """Cross-attention of fixed queries, a feed-forward layer and a LayerNorm; no residual.

    Args:
        n_inputs: channels K of a cell.
        dim: channels of queries and of the result; a head has dim / n_heads for keys, twice as many for values.
        mask: a sigma per head (own), one for all (shared), no mask (none), or nothing but the mask (only).
        counted_norm: keeps the LayerNorm that the release makes and never applies; see `DeapHead`.
    """

    def __init__(
        self,
        n_inputs: int,
        *,
        rng: torch.Generator,
        dim: int = 16,
        n_heads: int = 8,
        mask: Mask = "own",
        counted_norm: bool = False,
    ) -> None:
        super().__init__()
        assert dim % n_heads == 0, f"{dim} channels do not divide into {n_heads} heads"
        self.n_heads, self.mask = n_heads, mask
        if counted_norm:
            self.counted_norm = nn.LayerNorm(n_inputs + CODE_DIM).requires_grad_(False)
        if mask != "only":
            self.query = make_torch_linear(CODE_DIM, dim, rng)
            self.key = make_torch_linear(n_inputs + CODE_DIM, dim, rng)
        self.value = make_torch_linear(n_inputs + CODE_DIM, 2 * dim, rng)
        if mask != "none":
            self.sigma = nn.Parameter(torch.full((1 if mask == "shared" else n_heads,), SIGMA))
        self.fc1 = make_torch_linear(2 * dim, 4 * dim, rng)
        self.fc2 = make_torch_linear(4 * dim, dim, rng)
        self.norm = nn.LayerNorm(dim)

    def sigmas(self) -> Float[Tensor, " h"] | None:
        """One per head; None without a mask."""
        return None if self.mask == "none" else self.sigma.expand(self.n_heads)

    def forward(self, cells: Float[Tensor, "B H W K"], size: tuple[int, int]) -> Float[Tensor, "B D Hq Wq"]:
        """Answers on a grid of `size` queries."""
        attended = self._attend(cells, size)  # [B, Q, 2 D]
        tokens: Tensor = self.norm(self.fc2(F.relu(self.fc1(attended))))
        return tokens.transpose(1, 2).reshape(len(cells), -1, *size)

    def _attend(self, cells: Float[Tensor, "B H W K"], size: tuple[int, int]) -> Float[Tensor, "B Q E"]:
        """A part of the queries at a time; in training each part is computed anew for its gradient.

        So no [Q, N] tensor of a head and image is ever whole: at 37 x 37 cells and 56 x 56 queries, 32 images, one of
        all would take 4.4 GB.
        """
        grid, device = (cells.shape[1], cells.shape[2]), cells.device
        code = code_positions(*grid, device)
        value = self._split(_map_coded(self.value, cells.flatten(1, 2), code))
        if self.mask != "only":
            key = self._split(_map_coded(self.key, cells.flatten(1, 2), code))
            query = self._split(self.query(code_positions(*size, device))[None])[0]
        places, cell_places = place_cells(*size, device), place_cells(*grid, device)
        n_images = 1 if self.mask == "only" else len(cells)
        part_bytes = _PART_BYTES.get(device.type, _PART_BYTES_GPU)
        n_together = max(1, part_bytes // (4 * n_images * self.n_heads * len(cell_places)))
        starts = range(0, len(places), n_together)
        anew = torch.is_grad_enabled() and len(starts) > 1
        found = []
        for start in starts:
            part = slice(start, start + n_together)
            asked = (None, None) if self.mask == "only" else (query[:, part], key)
            inputs = (*asked, value, self.sigmas(), places[part], cell_places)
            found.append(
                checkpoint(_attend_part, *inputs, use_reentrant=False, preserve_rng_state=False)
                if anew
                else _attend_part(*inputs)
            )
        return torch.cat(found, dim=1)

    def _split(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B h N e"]:
        return tokens.reshape(*tokens.shape[:2], self.n_heads, -1).transpose(1, 2)


def sigma_entries(networks: Iterable[nn.Module]) -> dict[str, list[dict[str, Any]]]:
    """For results.json: the sigma of every head of every network's attention; nothing where there are no masks."""
    attentions = [module for network in networks for module in network.modules() if isinstance(module, MaskedAttention)]
    sigmas = [attention.sigmas() for attention in attentions]
    found = [
        {"network": i, "head": head, "value": value}
        for i, of_network in enumerate(sigmas)
        if of_network is not None
        for head, value in enumerate(of_network.tolist())
    ]
    return {"sigma": found} if found else {}


def _map_coded(linear: nn.Linear, tokens: Float[Tensor, "B N K"], code: Float[Tensor, "N 8"]) -> Float[Tensor, "B N M"]:
    """The map of tokens with their code behind them; the code's share is the same for all images."""
    weight, code_weight = linear.weight[:, : tokens.shape[2]], linear.weight[:, tokens.shape[2] :]
    return F.linear(tokens, weight) + F.linear(code, code_weight, linear.bias)


def _attend_part(
    query: Float[Tensor, "h Q e"] | None,
    key: Float[Tensor, "B h N e"] | None,
    value: Float[Tensor, "B h N v"],
    sigma: Float[Tensor, " h"] | None,
    places: Float[Tensor, "Q 2"],
    cell_places: Float[Tensor, "N 2"],
) -> Float[Tensor, "B Q E"]:
    """Softmax of scores and mask, in float32: bfloat16 has steps of 1/32 where the mask is highest."""
    with _without_autocast(value.device.type):
        bias = None if sigma is None else mask_bias(sigma.float(), places, cell_places)
        if query is None or key is None:
            assert bias is not None
            scores = bias[None]
        else:
            query, key = query.float() / math.sqrt(query.shape[2]), key.float().transpose(2, 3)
            scores = query @ key
            if bias is not None:
                scores += bias  # in place: the gradient of the product does not need it
        found = scores.softmax(dim=-1) @ value.float()
        return found.transpose(1, 2).flatten(2)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Float32 inside an autocast; outside one nothing: older MPS refuses to hear of it."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
