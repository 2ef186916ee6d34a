"""The transformer block against timm's, and linears that leave the global generator alone."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from loffta.heads.block import Block, make_linear

TO_TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def to_timm(state):
    """Our names -> timm's."""
    return {".".join(TO_TIMM.get(part, part) for part in name.split(".")): value for name, value in state.items()}


@pytest.mark.parametrize(("dim", "n_heads", "mlp_ratio"), [(128, 2, 4), (48, 6, 2), (16, 1, 1)])
def test_block_equals_timm(dim, n_heads, mlp_ratio):
    rng = torch.Generator().manual_seed(0)
    block = Block(dim, n_heads, rng=rng, mlp_ratio=mlp_ratio)
    for parameter in block.parameters():  # far from the initial zeros and ones
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    norm_layer = partial(nn.LayerNorm, eps=1e-5)
    timm_block = TimmBlock(dim, n_heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm_layer).eval()
    timm_block.load_state_dict(to_timm(block.state_dict()))
    tokens = torch.randn(3, 10, dim, generator=rng)
    torch.testing.assert_close(block(tokens), timm_block(tokens), atol=1e-4, rtol=1e-4)


def test_paper_block_has_198272_parameters():
    block = Block(128, 2, rng=torch.Generator())
    assert 6 * sum(parameter.numel() for parameter in block.parameters()) == 1_189_632


def test_channels_must_divide_into_heads():
    with pytest.raises(AssertionError, match="10 channels do not divide into 4 heads"):
        Block(10, 4, rng=torch.Generator())


def test_linear_draws_from_its_generator_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    linear = make_linear(200, 300, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(make_linear(200, 300, torch.Generator().manual_seed(5)).weight, linear.weight)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not linear.bias.any()
