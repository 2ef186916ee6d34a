"""The approximation of SMP: its penalty, its two predictors, and what becomes of taps that say nothing."""

import pytest
import torch
import torch.nn.functional as F

from loffta.heads import head_label
from loffta.heads.pooled_taps import PooledTaps
from loffta.heads.relevance import penalty, scores
from loffta.heads.smp import SmpHead, SmpRecipe
from loffta.tokens import FeatureSpec

SPECS = [
    FeatureSpec("vit", ("blocks.0", "blocks.1"), "grid", (2, 2, 6), 32),
    FeatureSpec("vit", ("blocks.0", "blocks.1"), "prefix", (1, 6), 32),
    FeatureSpec("net", ("stages.0",), "grid", (4, 4, 2), 32),
]


def draw(n_images=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) for spec in SPECS]


def build(**arguments):
    return SmpHead(SPECS, 3, rng=torch.Generator().manual_seed(0), **{"pooled_size": 8} | arguments)


def test_linear_map_of_the_pooled_taps():
    head, features = build(), draw()
    pooled = PooledTaps("smp", SPECS, 8).pool(features)
    assert torch.equal(head.prepare(features), pooled)
    expected = pooled @ head.project.weight.T + head.project.bias
    torch.testing.assert_close(head(pooled), expected)
    assert head.classify is None


def test_mlp_of_the_pooled_taps():
    head = build(hidden=5)
    pooled = head.prepare(draw())
    assert head.project.weight.shape == (5, pooled.shape[1])
    expected = F.gelu(pooled @ head.project.weight.T + head.project.bias) @ head.classify.weight.T + head.classify.bias
    torch.testing.assert_close(head(pooled), expected)


@pytest.mark.parametrize("hidden", [None, 5])
def test_lasso_is_over_taps(hidden):
    head = build(hidden=hidden, relevance_weight=0.25)
    # of each vit tap one window of int(5 / (8 / 6)) tokens; of net 2 x 2 windows of 2 x 2 cells of 2 channels
    assert [(f"{group.backbone}:{group.tap}", group.ranges) for group in head.tap_groups] == [
        ("vit:blocks.0", ((0, 6),)),
        ("vit:blocks.1", ((6, 12),)),
        ("net:stages.0", ((12, 20),)),
    ]
    assert [(group.backbone, group.tap) for group in head.backbone_groups] == [("vit", None), ("net", None)]
    torch.testing.assert_close(head.penalty(), 0.25 * penalty(head.project.weight, head.tap_groups))
    assert build(relevance_weight=0).penalty() is None


def test_taps_that_say_nothing_lose_their_weights():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    features = draw(48)
    features[0][:, 1] = 0.2 * torch.randn(48, 2, 2, 6, generator=rng)
    features[0][torch.arange(48), 1, :, :, labels] += 2
    features[1][:, 1] = 0
    head = build(relevance_weight=0.05).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02, weight_decay=0)
    prepared = head.prepare(features)
    for _ in range(120):
        optimizer.zero_grad()
        (F.cross_entropy(head(prepared), labels) + head.penalty()).backward()
        optimizer.step()
    found = scores(head.project.weight.detach(), head.tap_groups).tolist()
    assert found[1] > 5 * max(found[0], found[2])
    assert (head.eval()(prepared).argmax(dim=1) == labels).all()


def test_says_that_it_is_an_approximation():
    assert head_label("smp") == "smp (our approximation)"
    assert head_label("combo") == "combo"
    assert head_label("a head that is no more") == "a head that is no more"


def test_recipe():
    recipe = SmpRecipe()
    assert recipe.head_arguments() == {"pooled_size": 1024, "hidden": None, "relevance_weight": recipe.relevance_weight}
    assert recipe.kinds() == ("grid", "prefix")
    assert SmpHead.n_phases == 1
