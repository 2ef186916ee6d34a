"""combo-deap against ComBo's own preparation, and its penalty against plain sums."""

import math

import torch
import torch.nn.functional as F

from loffta.evaluation.findings import relevance
from loffta.heads import HEADS, build_dense_head
from loffta.heads.combo import ComboHead
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

SAME = [FeatureSpec("one", ("a", "b"), "grid", (4, 4, 6), 64), FeatureSpec("two", ("x",), "grid", (4, 4, 5), 64)]
OTHER = [FeatureSpec("one", ("a", "b"), "grid", (4, 6, 6), 64), FeatureSpec("two", ("x",), "grid", (2, 3, 5), 64)]


def build(specs, **recipe):
    made = HEADS["combo-deap"].recipe(**{"output_px": 24, "width": 7} | recipe)
    return build_dense_head("combo-deap", specs, Readout((1, 2)), made, 0)


def make_features(specs):
    return [3 + 2 * torch.randn(2, len(spec.taps), *spec.shape) for spec in specs]


def test_cells_are_combos_where_all_grids_agree():
    features = make_features(SAME)
    for normalise in ("embed_and_tokens", "embed_only"):
        head = build(SAME, normalise=normalise)
        combo = ComboHead(SAME, 3, rng=torch.Generator(), grid=4, normalise=normalise)
        joined = torch.cat(head.prepare(features), dim=-1).flatten(1, 2)
        torch.testing.assert_close(joined, combo.prepare(features))


def test_taps_are_projected_before_they_are_interpolated():
    head, features = build(OTHER), make_features(OTHER)
    joined = []
    for feature in features:
        for tap in feature.unbind(1):
            flat = tap.flatten(1)
            flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            maps = flat.view(tap.shape).permute(0, 3, 1, 2)
            joined.append(F.interpolate(maps, (4, 6), mode="bilinear", align_corners=False))
    cells = F.linear(torch.cat(joined, dim=1).permute(0, 2, 3, 1), head.project.weight, head.project.bias)
    wanted = torch.cat([network(cells, 24) for network in head.networks], dim=1)
    torch.testing.assert_close(head(head.prepare(features)), wanted, atol=1e-4, rtol=1e-4)


def test_penalty_and_scores_weigh_backbones_by_their_size():
    head = build(SAME, relevance_weight=0.5)
    weight = head.project.weight.detach().double()
    norms = [math.sqrt(weight[:, :12].square().sum() + 1e-8), math.sqrt(weight[:, 12:].square().sum() + 1e-8)]
    sizes = [math.sqrt(12 / 8.5), math.sqrt(5 / 8.5)]
    wanted = 0.5 * sum(size * norm for size, norm in zip(sizes, norms, strict=True))
    assert math.isclose(head.penalty().item(), wanted, rel_tol=1e-6)
    head.penalty().backward()
    assert head.project.weight.grad.any()
    assert build(SAME).penalty() is None
    found = {entry["backbone"]: entry["score"] for entry in relevance([head])["backbones"]}
    assert math.isclose(found["two"], norms[1] / sizes[1], rel_tol=1e-6)
    assert [entry["tap"] for entry in relevance([head])["taps"]] == ["a", "b", "x"]
