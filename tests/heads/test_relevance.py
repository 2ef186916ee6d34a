"""Group penalty and scores against the paper's formula and numpy loops."""

import numpy as np
import pytest
import torch

from loffta.heads.relevance import backbone_groups, penalty, raw_scores, scores, tap_groups
from loffta.tokens import FeatureSpec

EQUAL = [FeatureSpec(name, ("1", "2"), "grid", (2, 2, 5), 32) for name in ("a", "b", "c")]
UNEQUAL = [  # backbone "a" comes from two tensors with "b" between them
    FeatureSpec("a", ("1",), "grid", (2, 2, 3), 32),
    FeatureSpec("b", ("1", "2"), "grid", (2, 2, 4), 32),
    FeatureSpec("a", ("2",), "grid", (1, 1, 7), 32),
]


def draw_weight(n_columns):
    return torch.randn(6, n_columns, generator=torch.Generator().manual_seed(0))


def norms(weight, blocks):
    return np.array([np.sqrt((weight.numpy()[:, columns].astype(np.float64) ** 2).sum() + 1e-8) for columns in blocks])


def test_groups_are_columns():
    assert [(g.backbone, g.ranges, g.n_columns) for g in backbone_groups(UNEQUAL)] == [
        ("a", ((0, 3), (11, 18)), 10),
        ("b", ((3, 7), (7, 11)), 8),
    ]
    assert [(g.backbone, g.tap, g.ranges) for g in tap_groups(UNEQUAL)] == [
        ("a", "1", ((0, 3),)),
        ("b", "1", ((3, 7),)),
        ("b", "2", ((7, 11),)),
        ("a", "2", ((11, 18),)),
    ]


def test_raw_scores_equal_numpy():
    weight = draw_weight(18)
    blocks = [[0, 1, 2, *range(11, 18)], list(range(3, 11))]
    np.testing.assert_allclose(raw_scores(weight, backbone_groups(UNEQUAL)), norms(weight, blocks), rtol=1e-6)


def test_equal_sizes_give_the_papers_formula():
    weight, groups = draw_weight(30), backbone_groups(EQUAL)
    expected = norms(weight, [list(range(start, start + 10)) for start in (0, 10, 20)])
    np.testing.assert_allclose(scores(weight, groups), expected, rtol=1e-6)
    assert torch.equal(scores(weight, groups), raw_scores(weight, groups))
    assert penalty(weight, groups).item() == pytest.approx(expected.sum(), rel=1e-6)


def test_gradient_of_each_group_is_a_unit_block():
    weight = draw_weight(30).requires_grad_()
    relevance_weight = 0.01
    (relevance_weight * penalty(weight, backbone_groups(EQUAL))).backward()
    for start in (0, 10, 20):
        block, gradient = weight.detach()[:, start : start + 10], weight.grad[:, start : start + 10]
        assert gradient.norm().item() == pytest.approx(relevance_weight, rel=1e-5)
        torch.testing.assert_close(gradient, relevance_weight * block / block.norm())


def test_unequal_sizes_are_weighted():
    weight, groups = draw_weight(18), backbone_groups(UNEQUAL)
    raw = norms(weight, [[0, 1, 2, *range(11, 18)], list(range(3, 11))])
    size_weights = np.sqrt(np.array([10, 8]) / 9)
    assert penalty(weight, groups).item() == pytest.approx((size_weights * raw).sum(), rel=1e-6)
    np.testing.assert_allclose(scores(weight, groups), raw / size_weights, rtol=1e-6)


def test_weights_of_equal_spread_score_alike_whatever_the_size():
    specs = [FeatureSpec("small", ("1",), "grid", (1, 1, 50), 32), FeatureSpec("wide", ("1",), "grid", (1, 1, 800), 32)]
    small, wide = scores(draw_weight(850), backbone_groups(specs)).tolist()
    assert small == pytest.approx(wide, rel=0.1)


def test_an_all_zero_group_has_a_finite_gradient():
    weight = torch.zeros(6, 30, requires_grad=True)
    penalty(weight, tap_groups(EQUAL)).backward()
    assert torch.equal(weight.grad, torch.zeros(6, 30))
    assert scores(weight, tap_groups(EQUAL)).tolist() == pytest.approx([1e-4] * 6)
