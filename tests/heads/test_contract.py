"""What holds for every head in HEADS; a new head is tested by being listed there."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from loffta.errors import UsageError
from loffta.heads import HEADS, IMAGE_HEADS, Head, build_head
from loffta.heads.recipe import Recipe
from loffta.tokens import FeatureSpec

N_CLASSES = 5
SHAPES = {"grid": [(3, 3, 8), (5, 5, 12)], "prefix": [(1, 8), (5, 12)], "mean": [(8,), (12,)]}


def make_specs(name, kinds=None):
    """Two backbones, each with every kind that the head is fed, as `choose_features` orders them."""
    backbones = [("vit", ("1", "2", "last"), 48), ("net", ("last",), 80)]
    return [
        FeatureSpec(backbone, taps, kind, SHAPES[kind][i], image_px)
        for i, (backbone, taps, image_px) in enumerate(backbones)
        for kind in kinds or HEADS[name].recipe().kinds()
    ]


def make_features(specs, n_images, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng).to(dtype) for spec in specs]


SMALL = {"loff": {"width": 24, "depth": 3, "n_heads": 2}}  # DeiT-S takes seconds, and is no other code


def build(name, seed=0):
    return build_head(name, make_specs(name), N_CLASSES, HEADS[name].recipe(**SMALL.get(name, {})), seed)


def run(head, features):
    return head(head.prepare(features))


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_same_seed_same_weights_whatever_the_global_generator(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = build(name, seed=1).state_dict()
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_order_of_the_batch_does_not_matter(name):
    head = build(name).eval()
    features = make_features(head.specs, 7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    logits = run(head, features)
    assert logits.shape == (7, N_CLASSES)
    torch.testing.assert_close(run(head, [feature[order] for feature in features]), logits[order])
    torch.testing.assert_close(run(head, [feature[2:3] for feature in features]), logits[2:3])


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_prepare_depends_on_no_weights(name):
    head, other = build(name), build(name, seed=1)
    features = make_features(head.specs, 4)
    copies = [feature.clone() for feature in features]
    prepared = head.prepare(features)
    assert not prepared.requires_grad
    assert prepared.dtype == torch.float32
    assert torch.equal(prepared, other.prepare(features))
    assert all(torch.equal(feature, copy) for feature, copy in zip(features, copies, strict=True))


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_half_precision_features_are_their_float32_values(name):
    head = build(name)
    features = make_features(head.specs, 4, dtype=torch.float16)
    assert torch.equal(head.prepare(features), head.prepare([feature.float() for feature in features]))


@pytest.mark.parametrize("n_images", [1, 6])  # 1: what may be left for the last batch
@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_gradients_reach_every_parameter(name, n_images):
    head = build(name).train()
    loss = F.cross_entropy(run(head, make_features(head.specs, n_images)), torch.arange(n_images) % N_CLASSES)
    loss.backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_bf16_autocast_is_near_fp32(name):
    head = build(name).eval()
    features = make_features(head.specs, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = run(head, features)
    torch.testing.assert_close(logits.float(), run(head, features), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_state_round_trip(name):
    head, other = build(name), build(name, seed=1)
    features = make_features(head.specs, 4)
    run(head.train(), features)  # buffers move too
    other.load_state_dict(head.state_dict())
    assert torch.equal(run(other.eval(), features), run(head.eval(), features))


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_no_decay_names_parameters(name):
    head = build(name)
    parameters = dict(head.named_parameters())
    assert head.no_decay() <= set(parameters)
    vectors = {key for key, value in parameters.items() if value.ndim <= 1 or key.endswith("bias")}
    if name in ("attentive", "fusion"):  # ALF's code has one group for all
        vectors = set()
    assert vectors <= head.no_decay()
    assert isinstance(head, Head)


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_wrong_features_say_what_was_expected(name):
    head = build(name)
    *before, last = features = make_features(head.specs, 4)
    n = len(features)
    with pytest.raises(
        UsageError, match=rf"got {n - 1} feature tensors for {n} specs(.|\n)*one tensor per FeatureSpec"
    ):
        head.prepare(before)
    with pytest.raises(UsageError, match=r"features of net have shape \(3, (.|\n)*not \(4, "):
        head.prepare([*before, last[:3]])
    with pytest.raises(UsageError, match=r"features of net (.|\n)*build the head for these features"):
        head.prepare([*before, last[..., 1:]])
    with pytest.raises(UsageError, match=r"features of vit have shape (.|\n)*remedy: pass \[B, L, "):
        head.prepare([features[0][:, :2], *features[1:]])


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_wrong_specs_say_which_kind_is_needed(name):
    entry = HEADS[name]
    kinds = entry.recipe().kinds()
    wrong = next(kind for kind in SHAPES if kind not in kinds)
    with pytest.raises(UsageError, match=f"kind '{wrong}'(.|\n)*give it features of kind '{kinds[0]}'"):
        build_head(name, make_specs(name, [wrong]), N_CLASSES, entry.recipe(), 0)
    with pytest.raises(UsageError, match="at least one store"):
        build_head(name, [], N_CLASSES, entry.recipe(), 0)


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_recipe_is_frozen_strict_and_resolves_once(name):
    recipe = HEADS[name].recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.lr = 1.0
    with pytest.raises(ValidationError, match="learning_rate"):
        type(recipe)(learning_rate=1.0)
    for wrong in ({"lr": 0.0}, {"lr": float("inf")}, {"epochs": 0}, {"warmup_fraction": 1.1}, {"precision": "fp16"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            type(recipe)(**wrong)
    specs = make_specs(name)
    resolved = recipe.resolve(specs)
    assert resolved.resolve(specs) == resolved
    assert type(recipe).model_validate(resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize(("name", "needed"), [("attentive", "patch tokens"), ("fusion", "means"), ("linear", "mean")])
def test_registers_alone_are_refused_before_a_run(name, needed):
    recipe = HEADS[name].recipe(**{"pooling": "cls"} if name == "linear" else {})
    specs = [FeatureSpec("naflex", ("last",), "prefix", (4, 8), 32, registers_only=True)]
    with pytest.raises(UsageError, match=rf"naflex has no class token(.|\n)*remedy: .*{needed}"):
        recipe.resolve(specs)


def test_unknown_head_names_its_neighbour():
    with pytest.raises(UsageError, match=r"unknown head 'comboo'(.|\n)*did you mean combo"):
        build_head("comboo", make_specs("combo"), N_CLASSES, HEADS["combo"].recipe(), 0)


def test_another_heads_recipe_is_refused():
    plain = Recipe(epochs=1, batch_size=1, lr=1.0, weight_decay=0.0)
    with pytest.raises(UsageError, match=r"a Recipe cannot build head 'combo'(.|\n)*pass a ComboRecipe"):
        build_head("combo", make_specs("combo"), N_CLASSES, plain, 0)
