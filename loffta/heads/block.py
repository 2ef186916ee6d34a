"""The pre-norm transformer block that heads share, and linears whose weights come from a generator.

In:  tokens [B, N, D].   Out: tokens [B, N, D].   The maths is that of timm's ViT block, which the tests compare with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loffta.shapes import Tokens


def make_linear(n_inputs: int, n_outputs: int, rng: torch.Generator, *, std: float = 0.02) -> nn.Linear:
    """A linear with truncated-normal weights and zero bias (timm's ViT); the global generator is not touched."""
    linear = undrawn_linear(n_inputs, n_outputs)
    nn.init.trunc_normal_(linear.weight, std=std, generator=rng)
    nn.init.zeros_(linear.bias)
    return linear


def make_torch_linear(n_inputs: int, n_outputs: int, rng: torch.Generator) -> nn.Linear:
    """A linear with the weights and bias that torch's own would have, uniform within 1 / sqrt(inputs), from `rng`."""
    linear = undrawn_linear(n_inputs, n_outputs)
    draw_torch_weight(linear.weight, rng)
    bound = 1 / math.sqrt(n_inputs)
    nn.init.uniform_(linear.bias, -bound, bound, generator=rng)
    return linear


def undrawn_linear(n_inputs: int, n_outputs: int) -> nn.Linear:
    """Before its weights are drawn: torch would draw them itself. Its own `to_empty` imports sympy, 0.4 s."""
    linear = nn.Linear(n_inputs, n_outputs, device="meta")
    linear.weight, linear.bias = (nn.Parameter(torch.empty(p.shape)) for p in (linear.weight, linear.bias))
    return linear


def draw_torch_weight(weight: Tensor, rng: torch.Generator) -> None:
    """Fills a linear's weight [outputs, inputs] as `nn.Linear.reset_parameters` does."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=rng)


def check_width(width: int, n_heads: int, *, name: str = "width", of: str = "n_heads") -> None:
    """For recipes: refuses a width that does not divide into heads, or groups.

    Raises:
        ValueError: which a recipe's validator turns into the error that a user sees.
    """
    if width % n_heads:
        raise ValueError(f"{name} {width} is not a multiple of {of} {n_heads}")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); no dropout.

    Args:
        dim: D, a multiple of `n_heads`.
        mlp_ratio: width of the MLP's hidden layer over D.
        norm_eps: 1e-5 as torch's LayerNorm (ComBo); timm's own default is 1e-6.
    """

    def __init__(
        self, dim: int, n_heads: int, *, rng: torch.Generator, mlp_ratio: int = 4, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        assert dim % n_heads == 0, f"{dim} channels do not divide into {n_heads} heads"
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.qkv = make_linear(dim, 3 * dim, rng)
        self.proj = make_linear(dim, dim, rng)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.fc1 = make_linear(dim, mlp_ratio * dim, rng)
        self.fc2 = make_linear(mlp_ratio * dim, dim, rng)

    def forward(self, tokens: Tokens) -> Tokens:
        """Every token attends to every token."""
        tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self._transform(self.norm2(tokens))

    def _attend(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        n_images, n_tokens, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(n_images, n_tokens, 3, self.n_heads, dim // self.n_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)  # [B, heads, N, D / heads]
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed

    def _transform(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        transformed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return transformed
