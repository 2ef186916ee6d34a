"""LOFF against timm's VisionTransformer with copied weights, loops, and pooling at extraction."""

from functools import partial

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from loffta.heads.loff import LoffHead, LoffRecipe, _keep_random
from loffta.tokens import FeatureSpec

TO_TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "classify": "head"}
TINY = {"width": 12, "depth": 2, "n_heads": 3}


def specs_of(*backbones):
    """(name, grid, D, P) each; P 0: no prefix tokens."""
    found = []
    for name, grid, dim, n_prefix in backbones:
        found.append(FeatureSpec(name, ("last",), "grid", (*grid, dim), 32))
        if n_prefix:
            found.append(FeatureSpec(name, ("last",), "prefix", (n_prefix, dim), 32))
    return found


def draw(specs, n_images=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) * 2 + 1 for spec in specs]


def build(specs, seed=0, **sizes):
    """A head far from the initial zeros and ones."""
    rng = torch.Generator().manual_seed(seed)
    head = LoffHead(specs, 7, rng=rng, **sizes).eval()
    for parameter in head.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return head


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def timm_twin(head, grid, dim, class_token):
    """timm's ViT of one image: its class token parameter is that image's class token, already embedded."""
    model = VisionTransformer(
        img_size=grid,
        patch_size=1,
        in_chans=dim,
        num_classes=7,
        embed_dim=12,
        depth=2,
        num_heads=3,
        embed_norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    state = {
        ".".join(TO_TIMM.get(part, part) for part in name.split(".")): value
        for name, value in head.state_dict().items()
        if not name.startswith("embeddings")
    }
    embed = head.embeddings[0]
    state["patch_embed.proj.weight"] = embed.project.weight.data[:, :, None, None]
    state["patch_embed.proj.bias"] = embed.project.bias.data
    state |= {f"patch_embed.norm.{name}": value for name, value in embed.norm.state_dict().items()}
    state["pos_embed"] = torch.cat([head.cls_token.data, embed.pos_embed.data], dim=1)  # the learned offset
    state["cls_token"] = class_token
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("n_prefix", [0, 1, 5])  # none; a class token; a class token and registers
def test_logits_equal_timm(n_prefix):
    grid, dim = (3, 5), 8
    specs = specs_of(("vit", grid, dim, n_prefix))
    head, features = build(specs, **TINY), draw(specs)
    logits = head(head.prepare(features)).detach()
    assert logits.std() > 0.1
    for image in range(3):
        embed, class_token = head.embeddings[0], torch.zeros(1, 1, 12)
        if n_prefix:
            class_token = embed.norm(embed.project(features[1][image : image + 1, 0, :1])).detach()
        cells = features[0][image : image + 1, 0].permute(0, 3, 1, 2)
        expected = timm_twin(head, grid, dim, class_token)(cells)
        torch.testing.assert_close(logits[image : image + 1], expected, atol=1e-5, rtol=1e-4)


def test_size_is_that_of_deit_small():
    """768 channels, 16 x 16 cells, 100 classes; the blocks are counted in timm's own DeiT-S."""
    head = LoffHead(specs_of(("vit", (16, 16), 768, 1)), 100, rng=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        deit = timm.create_model("deit_small_patch16_224")
    assert count(head.blocks) == count(deit.blocks) == 21_293_568
    embedding = 768 * 384 + 384 + 2 * 384 + 256 * 384  # projection, LayerNorm, positions
    assert count(head) == embedding + 384 + 21_293_568 + 2 * 384 + 384 * 100 + 100 == 21_727_588


def test_backbones_stand_side_by_side():
    """Each with its own projection and positions; a loop over them, the blocks taken for granted."""
    specs = specs_of(("wide", (2, 2), 10, 1), ("bare", (3, 1), 4, 0), ("regs", (1, 2), 6, 5))
    head, features = build(specs, **TINY), draw(specs)
    wide, bare, regs = head.embeddings
    embedded = [e.norm(e.project(f[:, 0].flatten(1, 2))) + e.pos_embed for e, f in
                zip((wide, bare, regs), (features[0], features[2], features[3]), strict=True)]  # fmt: skip
    class_tokens = [e.norm(e.project(f[:, 0, :1])) for e, f in ((wide, features[1]), (regs, features[4]))]
    first = head.cls_token + (class_tokens[0] + class_tokens[1]) / 2
    expected = head.classify(head.norm(head.blocks(torch.cat([first, *embedded], dim=1))[:, 0]))
    prepared = head.prepare(features)
    assert prepared.shape == (3, 1 + 4 + 3 + 1 + 2, 10)
    torch.testing.assert_close(head(prepared), expected, atol=1e-5, rtol=1e-4)


def test_several_taps_are_several_sources():
    specs = [
        FeatureSpec("vit", ("1", "2"), kind, shape, 32) for kind, shape in [("grid", (2, 2, 4)), ("prefix", (1, 4))]
    ]
    head = build(specs, **TINY)
    assert [embedding.pos_embed.shape[1] for embedding in head.embeddings] == [4, 4]
    grid, prefix = draw(specs)
    prepared = head.prepare([grid, prefix])
    assert torch.equal(prepared[:, :5], torch.cat([prefix[:, 0], grid[:, 0].flatten(1, 2)], dim=1))
    assert torch.equal(prepared[:, 5:], torch.cat([prefix[:, 1], grid[:, 1].flatten(1, 2)], dim=1))


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_pooling_in_training_equals_pooling_at_extraction(grid):
    """But for one rounding to the storage dtype; windows at the edges average what is there."""
    specs, stored = specs_of(("vit", grid, 8, 1)), specs_of(("vit", (-(-grid[0] // 2), -(-grid[1] // 2)), 8, 1))
    cells, prefix = draw(specs)
    here, there = build(specs, pool="2x2", **TINY), build(stored, **TINY)
    there.load_state_dict(here.state_dict())
    pooled_in_training = here.prepare([cells.half(), prefix.half()])
    windows = [
        [cells[:, :, r : r + 2, c : c + 2].mean((2, 3)) for c in range(0, grid[1], 2)] for r in range(0, grid[0], 2)
    ]
    means = torch.stack([torch.stack(row, 2) for row in windows], 2)  # [B, L, rows, columns, D]
    pooled_in_store = there.prepare([means.half(), prefix.half()])
    torch.testing.assert_close(pooled_in_training, pooled_in_store, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(here(pooled_in_training), there(pooled_in_store), atol=1e-2, rtol=1e-2)


def test_pool_at_double_size_has_the_tokens_of_the_plain_size():
    """methods.md 9.7: patch 14, 256 px (252) gives 18 x 18 cells, 512 px (504) 36 x 36."""
    plain = build(specs_of(("vit", (18, 18), 4, 1)), **TINY)
    pooled = build(specs_of(("vit", (36, 36), 4, 1)), pool="2x2", **TINY)
    shapes = [[tuple(p.shape) for p in head.parameters()] for head in (plain, pooled)]
    assert shapes[0] == shapes[1]
    prepared = [head.prepare(draw(head.specs, n_images=1)) for head in (plain, pooled)]
    assert prepared[0].shape == prepared[1].shape == (1, 325, 4)


def test_patch_drop_keeps_distinct_tokens_of_each_image():
    tokens = torch.arange(4 * 10.0).reshape(4, 10, 1)
    kept = _keep_random(tokens, 6, torch.Generator().manual_seed(0))[:, :, 0]
    chosen = [set(row.tolist()) for row in kept]
    for image, row in enumerate(chosen):
        assert len(row) == 6
        assert row <= set(tokens[image, :, 0].tolist())
    assert len({frozenset(value % 10 for value in row) for row in chosen}) > 1  # not the same for all images
    again = _keep_random(tokens, 6, torch.Generator().manual_seed(0))[:, :, 0]
    assert torch.equal(kept, again)


def test_patch_drop_is_for_training_only_and_draws_from_the_members_generator():
    specs = specs_of(("vit", (4, 4), 8, 1))
    head, whole = build(specs, patch_drop=0.5, **TINY).train(), build(specs, **TINY)
    prepared = head.prepare(draw(specs))
    before = torch.get_rng_state()
    first, second = (head(prepared, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(first, head(prepared, torch.Generator().manual_seed(0)))
    assert torch.equal(head(prepared), whole(prepared))
    assert torch.equal(whole(prepared, torch.Generator()), whole(prepared))  # off: nothing is drawn


def test_patch_drop_leaves_the_share_that_it_says():
    specs = specs_of(("vit", (3, 4), 8, 1), ("net", (2, 4), 4, 0))
    head = build(specs, patch_drop=0.75, **TINY)
    seen = []
    head.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    head(head.prepare(draw(specs)), torch.Generator().manual_seed(0))
    assert seen == [1 + 5]  # a quarter of 20, the class token always


def test_no_decay():
    names = build(specs_of(("vit", (2, 2), 4, 1)), **TINY).no_decay()
    assert {"cls_token", "embeddings.0.pos_embed", "embeddings.0.norm.weight", "classify.bias"} <= names
    assert not {"embeddings.0.project.weight", "blocks.0.qkv.weight", "classify.weight"} & names


def test_recipe():
    recipe = LoffRecipe()
    assert (recipe.lr, recipe.weight_decay, recipe.epochs, recipe.batch_size) == (1e-4, 0.05, 100, 64)
    sizes = {"width": 384, "depth": 12, "n_heads": 6, "mlp_ratio": 4}
    assert recipe.head_arguments() == sizes | {"pool": None, "patch_drop": 0.0}
    assert recipe.kinds() == ("grid", "prefix")
    for wrong, message in [({"pool": "3x3"}, "2x2"), ({"patch_drop": 1}, "less than 1"), ({"n_heads": 5}, "width 384")]:
        with pytest.raises(ValidationError, match=message):
            LoffRecipe(**wrong)
