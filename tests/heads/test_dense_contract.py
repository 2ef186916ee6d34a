"""What holds for every head in DENSE_HEADS; a new one is tested by being listed there."""

from dataclasses import fields

import pytest
import torch
from pydantic import ValidationError

from loffta.errors import UsageError
from loffta.heads import DENSE_HEADS, HEADS, Head, build_dense_head
from loffta.heads.dense import DenseRecipe
from loffta.targets import DenseSettings, Readout
from loffta.tokens import FeatureSpec

READOUT = Readout((3, 1))
PX = 24
SMALL = {  # the papers' widths take seconds, and are no other code
    "dpt": {"width": 8},
    "combo-deap": {"width": 6},
    "bicubic": {"dim": 8, "cnn_width": 6},
    "deconv": {"dim": 8, "cnn_width": 6},
    "featup": {"range_dim": 4},
}
LEARNING = [name for name in DENSE_HEADS if name != "dense-knn"]  # test_dense_knn.py has what it does instead
THUMB = FeatureSpec("images", ("thumb",), "thumb", (20, 20, 3), 20)


def make_specs(name):
    """Two backbones, one with two grids that are not square, with every kind that the head is fed."""
    shapes = {"grid": [(4, 6, 8), (2, 3, 12)], "prefix": [(1, 8)]}
    kinds = HEADS[name].recipe().kinds()
    specs = [FeatureSpec("net", ("stages.0",), "grid", shapes["grid"][0], 32)]
    specs += [FeatureSpec("net", ("stages.1", "stages.2"), "grid", shapes["grid"][1], 32)]
    for kind in kinds:
        shape = (3, 3, 8) if kind == "grid" else (2, 8)
        specs.append(FeatureSpec("vit", ("blocks.0", "last"), kind, shape, 48))
    return specs + [THUMB] * HEADS[name].head.needs_thumb


def make_features(specs, n_images, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (n_images, 1, *spec.shape), dtype=torch.uint8, generator=rng)
        if spec.kind == "thumb"
        else torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng).to(dtype)
        for spec in specs
    ]


def build(name, seed=0, specs=None, readout=READOUT, **recipe):
    made = HEADS[name].recipe(**{"output_px": PX} | SMALL.get(name, {}) | recipe)
    return build_dense_head(name, specs or make_specs(name), readout, made, seed)


def run(head, features, rng=None):
    return head(head.prepare(features), rng)


def tensors_of(prepared):
    return [prepared] if isinstance(prepared, torch.Tensor) else list(prepared)


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_seed_decides_all_weights(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = build(name, seed=1)
    drawn = [key for key, value in other.named_parameters() if value.ndim > 1]  # weights; some biases begin at 0
    assert all(not torch.equal(first[key], other.state_dict()[key]) for key in drawn)


@pytest.mark.parametrize("name", LEARNING)
def test_order_of_the_batch_does_not_matter(name):
    head = build(name).eval()
    features = make_features(head.specs, 4)
    order = torch.tensor([3, 0, 2, 1])
    maps = run(head, features)
    torch.testing.assert_close(run(head, [feature[order] for feature in features]), maps[order])
    torch.testing.assert_close(run(head, [feature[2:3] for feature in features]), maps[2:3])
    assert not torch.allclose(maps[0], maps[1])


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_outputs_have_the_size_that_is_asked_for_whenever(name):
    head = build(name).eval()
    prepared = head.prepare(make_features(head.specs, 2))
    for px in (PX, 17, 40):
        head.output_px = px
        assert head(prepared).shape == (2, READOUT.n_outputs, px, px)


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_prepare_depends_on_no_weights_and_keeps_half_precision_values(name):
    head, other = build(name), build(name, seed=1)
    features = make_features(head.specs, 3, dtype=torch.float16)
    copies = [feature.clone() for feature in features]
    prepared = tensors_of(head.prepare(features))
    same = tensors_of(other.prepare([f if f.dtype == torch.uint8 else f.float() for f in features]))
    assert all(torch.equal(one, two) for one, two in zip(prepared, same, strict=True))
    assert all(one.dtype == torch.float32 and not one.requires_grad for one in prepared)
    assert all(torch.equal(feature, copy) for feature, copy in zip(features, copies, strict=True))


@pytest.mark.parametrize("name", LEARNING)
def test_gradients_reach_every_parameter_that_learns(name):
    head = build(name).train()
    targets = torch.randn(2, READOUT.n_outputs, PX, PX, generator=torch.Generator().manual_seed(1))
    (run(head, make_features(head.specs, 2), torch.Generator().manual_seed(0)) * targets).sum().backward()
    for parameter_name, parameter in head.named_parameters():
        if "counted_norm" in parameter_name:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_bf16_autocast_is_near_fp32(name):
    head = build(name).eval()
    features = make_features(head.specs, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = run(head, features)
    torch.testing.assert_close(maps.float(), run(head, features), atol=0.06, rtol=0.06)


@pytest.mark.parametrize("name", LEARNING)
def test_state_round_trip_with_proxies(name):
    head, other = build(name), build(name, seed=1)
    head.add_proxies(7, torch.Generator().manual_seed(3))
    assert head.proxies.shape == (7, READOUT.n_outputs)
    assert head.n_adapter_parameters() == sum(p.numel() for p in other.parameters())
    features = make_features(head.specs, 2)
    run(head.train(), features)  # buffers move too
    other.load_state_dict(head.state_dict())  # how many proxies there are, its weights alone say
    assert torch.equal(run(other.eval(), features), run(head.eval(), features))
    assert torch.equal(other.proxies, head.proxies)
    assert isinstance(head, Head)


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_wrong_features_say_what_was_expected(name):
    head = build(name)
    features = make_features(head.specs, 2)
    with pytest.raises(UsageError, match=rf"got {len(features) - 1} feature tensors(.|\n)*one tensor per FeatureSpec"):
        head.prepare(features[:-1])
    with pytest.raises(UsageError, match=r"features of net have shape (.|\n)*remedy: pass \[B, L, "):
        head.prepare([features[0][..., 1:], *features[1:]])
    with pytest.raises(UsageError, match=r"kind 'mean'(.|\n)*give it features of kind 'grid'"):
        build(name, specs=[FeatureSpec("net", ("x",), "mean", (8,), 32), *make_specs(name)[1:]])
    with pytest.raises(UsageError, match="at least one store"):
        build_dense_head(name, [], READOUT, HEADS[name].recipe(), 0)


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_recipe_holds_the_settings_of_its_protocol(name):
    recipe = HEADS[name].recipe()
    assert recipe.settings() == DenseSettings()
    changed = {"depth_as": "bins", "eigen_crop": True, "eval_px": 100, "max_depth": 80.0}
    assert HEADS[name].recipe(**changed).settings() == DenseSettings(**changed)
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe
    assert {field.name for field in fields(DenseSettings)} <= {*DenseRecipe.model_fields}
    specs = make_specs(name)
    assert recipe.resolve(specs).resolve(specs) == recipe.resolve(specs)
    for wrong in ({"output_px": 0}, {"output_px": 5000}, {"tolerance": 2.0}, {"embedding_dim": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            type(recipe)(**wrong)


BUDGET_SPECS = [FeatureSpec("net", ("last",), "grid", (14, 14, 768), 224)]


@pytest.mark.parametrize("channels", [(1,), (1, 2)])
@pytest.mark.parametrize("name", [name for name in DENSE_HEADS if "budget" in HEADS[name].recipe.model_fields])
def test_budget_is_kept_and_used(name, channels):
    specs = BUDGET_SPECS + [THUMB] * HEADS[name].head.needs_thumb
    readout = Readout(channels)
    head = build_dense_head(name, specs, readout, HEADS[name].recipe(budget=43_286), 0)
    assert 0.94 * 43_286 < head.n_adapter_parameters() <= 43_286
    again = build_dense_head(name, specs, readout, HEADS[name].recipe(budget=43_286), 0)
    assert all(torch.equal(one, two) for one, two in zip(head.parameters(), again.parameters(), strict=True))
    with pytest.raises(
        UsageError, match=rf"'{name}' has [\d,]+ parameters at the least, more than a budget of (.|\n)*raise"
    ):
        build_dense_head(name, specs, readout, HEADS[name].recipe(budget=10), 0)
