"""Shapes of the token kinds."""

from loffta.tokens import KINDS, FeatureSpec, TokenSpec


def test_token_spec_shapes():
    spec = TokenSpec("blocks.3", height=4, width=5, n_prefix=1, dim=192)
    assert {kind: spec.shape(kind) for kind in KINDS} == {"grid": (4, 5, 192), "prefix": (1, 192), "mean": (192,)}


def test_which_prefix_begins_with_a_class_token():
    with_class = FeatureSpec("vit", ("1",), "prefix", (5, 8), 64)
    assert with_class.has_class_token
    assert not FeatureSpec("naflex", ("1",), "prefix", (4, 8), 64, registers_only=True).has_class_token
    assert not FeatureSpec("net", ("1",), "prefix", (0, 8), 64).has_class_token
    assert not FeatureSpec("vit", ("1",), "mean", (8,), 64).has_class_token


def test_feature_spec_dim_is_the_last_axis():
    assert FeatureSpec("net", ("stages.0",), "grid", (4, 4, 16), 64).dim == 16
    assert FeatureSpec("net", ("stages.0", "stages.1"), "mean", (24,), 64).dim == 24
