"""FeatUp's published stages inside the head, against a plain version of its official code."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from loffta.errors import UsageError
from loffta.heads import build_dense_head
from loffta.heads.featup import FeatupRecipe
from loffta.heads.jbu_stack import head_state
from loffta.targets import Readout
from loffta.tokens import FeatureSpec
from tests.heads.jbufiles import PREFIXES, as_guide, slow_stack, stack_weights

DIM = 6
GRID = FeatureSpec("net", ("last",), "grid", (2, 3, DIM), 32)
THUMB = FeatureSpec("images", ("thumb",), "thumb", (48, 48, 3), 48)


def build(specs=(GRID, THUMB), output_px=32, seed=0):
    recipe = FeatupRecipe(upsampler="a.ckpt", output_px=output_px)
    return build_dense_head("featup", list(specs), Readout((3,), 1.0), recipe, seed)


def take(head, tensors):
    head.load_state_dict(head.state_dict() | head_state(tensors, DIM, where="a.ckpt"))
    return head


def make_features(seed=0):
    rng = torch.Generator().manual_seed(seed)
    thumbs = torch.randint(0, 256, (2, 1, 48, 48, 3), dtype=torch.uint8, generator=rng)
    return [torch.randn(2, 1, 2, 3, DIM, generator=rng), thumbs]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("has_norm", [False, True])
def test_head_is_an_affine_map_behind_the_official_stack(prefix, has_norm):
    """The head maps first, with the last convolution folded in; here all channels are enlarged, then mixed, then
    mapped."""
    norm = prefix.removesuffix("upsampler.") if has_norm else None
    head = take(build(), stack_weights(DIM, prefix, norm))
    cells, thumbs = make_features()
    plain = stack_weights(DIM, "", "" if has_norm else None)
    of_norm = (plain["model.1.norm.weight"], plain["model.1.norm.bias"]) if has_norm else None
    large = slow_stack(plain, cells[:, 0].permute(0, 3, 1, 2), as_guide(thumbs), of_norm)
    assert large.shape == (2, DIM, 32, 48)
    mapped = F.conv2d(large, head.classify.weight[:, :, None, None], head.classify.bias)
    wanted = F.interpolate(mapped, (32, 32), mode="bilinear", align_corners=False)
    prepared = head.prepare([cells, thumbs])
    torch.testing.assert_close(head(prepared), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(head(prepared, torch.Generator().manual_seed(0)), head(prepared))  # what is frozen drops nothing


def test_only_the_affine_map_learns():
    head = take(build(), stack_weights(DIM))
    assert [name for name, _ in head.named_parameters()] == ["classify.weight", "classify.bias"]
    assert head.n_adapter_parameters() == 3 * DIM + 3
    head(head.prepare(make_features())).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_saved_weights_need_no_file():
    """Whether there is a LayerNorm, they say themselves."""
    for norm in (None, ""):
        head = take(build(), stack_weights(DIM, "upsampler.", norm))
        again = build(seed=1)
        again.load_state_dict(head.state_dict())
        prepared = head.prepare(make_features())
        assert torch.equal(again(prepared), head(prepared))
    assert not torch.equal(take(build(), stack_weights(DIM))(prepared), head(prepared))


def test_there_are_four_stages_whatever_the_size():
    assert [len(build(output_px=px).stages) for px in (4, 32, 64)] == [4, 4, 4]


def edited(**changes):
    """A bare stack with weights of other values; None: left out."""
    weights = stack_weights(DIM) | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a.weight": torch.ones(3)}, r"no 'up1.range_temp' among its 1 weights: 'a.weight'(.|\n)*jbu_stack_cocostuff"),
        (stack_weights(DIM, "a.") | stack_weights(DIM, "b."), "2 upsamplers in this file: 'a.'; 'b.'"),
        (stack_weights(8), r"for features of 8 channels, and these have 6(.|\n)*the backbone that it was trained on"),
        (edited(up3__range_temp=None), "no whole FeatUp upsampler: there is no 'up3.range_temp'"),
        (edited(up2__range_proj__0__weight=torch.ones(16, 3, 1, 1)), r"shape \(16, 3, 1, 1\), not \(32, 3, 1, 1\)"),
        (edited(fixup_proj__1__weight=torch.tensor(1.0)), r"shape \(\), not \(6, 6, 1, 1\)"),
        (edited(up1__range_temp=torch.tensor(float("nan"))), "'up1.range_temp' has values that are no finite numbers"),
        (edited(up1__range_temp=torch.tensor(1)), "is no plain tensor of numbers, but torch.int64"),
        (edited(up1__range_proj__0__bias=torch.ones(32).to_sparse()), "is no plain tensor"),
        (edited(up1__range_proj__0__bias=torch.ones(32, device="meta")), "is no plain tensor"),
        (
            {"image_encoder.0.weight": torch.ones(1), "cross_decode.conv2d.weight": torch.ones(1)},
            "these are AnyUp's weights, which are not read: pixels attend to cells",
        ),
        ({"\x1b[31m" + "a" * 10_000: torch.ones(1)}, r"weights: '\\x1b\[31maaa"),
    ],
)
def test_other_weights_are_refused(tensors, words):
    with pytest.raises(UsageError, match=words) as caught:
        head_state(tensors, DIM, where="a.ckpt")
    assert len(str(caught.value)) < 700
    assert "a.ckpt" in str(caught.value)


@pytest.mark.parametrize(
    ("specs", "named"),
    [
        ([FeatureSpec("net", ("a", "last"), "grid", (2, 3, DIM), 32)], "these are 2: net:a; net:last"),
        ([GRID, FeatureSpec("other", ("last",), "grid", (2, 3, DIM), 32)], "these are 2: net:last; other:last"),
    ],
)
def test_several_taps_or_backbones_are_refused(specs, named):
    recipe = FeatupRecipe(upsampler="a.ckpt")
    for refused in (lambda: recipe.resolve(specs), lambda: build([*specs, THUMB])):
        with pytest.raises(UsageError, match=f"one tap of one backbone, and {named}(.|\n)*--features BACKBONE:last"):
            refused()


def test_recipe_has_stages_of_one_kind():
    for other in ({"kernel": "gaussian"}, {"budget": 10_000}, {"range_dim": 8}):
        with pytest.raises(ValidationError, match="upsampler brings stages of its own"):
            FeatupRecipe(upsampler="a.ckpt", **other)
    with pytest.raises(ValidationError, match="upsampler_digest needs upsampler"):
        FeatupRecipe(upsampler_digest="00ff")
