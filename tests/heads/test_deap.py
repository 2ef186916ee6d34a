"""DeAP against its paper's parameter counts, and against a loop over queries in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

import loffta.heads.masked_attention as masked_attention
from loffta.errors import UsageError
from loffta.heads import build_dense_head, build_head
from loffta.heads.deap import DeapRecipe
from loffta.heads.masked_attention import MaskedAttention
from loffta.targets import Readout
from loffta.tokens import FeatureSpec


def one_tap(dim, side=14):
    return [FeatureSpec("net", ("last",), "grid", (side, side, dim), 224)]


def build(dim=12, channels=(1,), specs=None, bias=0.0, seed=0, **options):
    return build_dense_head("deap", specs or one_tap(dim), Readout(channels, bias), DeapRecipe(**options), seed)


@pytest.mark.parametrize(
    ("dim", "channels", "options", "n_parameters"),
    [
        pytest.param(768, (1,), {}, 43_286, id="boundary and depth, ViT-B"),
        pytest.param(768, (21,), {}, 47_272, id="VOC"),
        pytest.param(768, (32,), {}, 53_352, id="instances"),
        pytest.param(768, (200,), {"cnn_width": 32}, 87_704, id="COCO-Stuff"),
        pytest.param(768, (1, 2), {}, 86_594, id="CenterNet"),
        pytest.param(1024, (1,), {}, 56_086, id="ViT-L"),
        pytest.param(896, (1,), {}, 49_686, id="Hiera-B+"),
        pytest.param(1152, (1,), {}, 62_486, id="SO400M"),
    ],
)
def test_papers_parameter_counts(dim, channels, options, n_parameters):
    head = build(dim, channels, **options)
    assert head.n_adapter_parameters() == sum(p.numel() for p in head.parameters()) == n_parameters
    still = {name: p.numel() for name, p in head.named_parameters() if not p.requires_grad}
    assert {name.rpartition("counted_norm")[2] for name in still} == {".weight", ".bias"}  # the release's unused norm
    assert sum(still.values()) == 2 * (dim + 8) * len(channels)
    head.add_proxies(1000, torch.Generator().manual_seed(0))
    assert head.n_adapter_parameters() == n_parameters


def code(number):
    return [wave(number * frequency) for frequency in (1, 0.01) for wave in (math.sin, math.cos)]


def grid_of(rows, columns):
    """Code and place of every cell, row by row."""
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    codes = torch.tensor([code(c) + code(r) for r, c in cells], dtype=torch.float64)
    places = [(r / (rows - 1), c / (columns - 1)) for r, c in cells]
    return codes, places


def slow_attention(module, cells, size, mask):
    """One query, one head, one image at a time."""
    state = {name: value.double() for name, value in module.state_dict().items()}
    n_images, rows, columns, n_channels = cells.shape
    key_code, key_places = grid_of(rows, columns)
    query_code, query_places = grid_of(*size)
    n_heads = module.n_heads
    maps = []
    for image in cells.double().reshape(n_images, -1, n_channels):
        coded = torch.cat([image, key_code], dim=1)
        answers = []
        for q, place in enumerate(query_places):
            of_heads = []
            for h in range(n_heads):
                value = (
                    state["value.weight"].chunk(n_heads)[h] @ coded.T + state["value.bias"].chunk(n_heads)[h][:, None]
                )
                scores = torch.zeros(len(coded), dtype=torch.float64)
                if mask != "only":
                    key = state["key.weight"].chunk(n_heads)[h] @ coded.T + state["key.bias"].chunk(n_heads)[h][:, None]
                    query = (state["query.weight"] @ query_code[q] + state["query.bias"]).chunk(n_heads)[h]
                    scores += query @ key / math.sqrt(len(query))
                if mask != "none":
                    sigma = state["sigma"][h if mask != "shared" else 0].item()
                    for n, other in enumerate(key_places):
                        squared = (place[0] - other[0]) ** 2 + (place[1] - other[1]) ** 2
                        scores[n] += math.exp(-0.5 * (squared / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
                of_heads.append(value @ scores.softmax(dim=0))
            hidden = F.relu(F.linear(torch.cat(of_heads), state["fc1.weight"], state["fc1.bias"]))
            answer = F.linear(hidden, state["fc2.weight"], state["fc2.bias"])
            answers.append(F.layer_norm(answer, answer.shape, state["norm.weight"], state["norm.bias"]))
        maps.append(torch.stack(answers, dim=1).reshape(-1, *size))
    return torch.stack(maps)


def make_attention(mask="own", **options):
    rng = torch.Generator().manual_seed(0)
    module = MaskedAttention(6, rng=rng, mask=mask, **({"dim": 8, "n_heads": 4} | options))
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.rand(parameter.shape, generator=rng)  # own sigmas, norms that do something
    return module, torch.randn(2, 4, 3, 6, generator=rng)


@pytest.mark.parametrize("mask", ["own", "shared", "none", "only"])
def test_attention_is_the_papers_query_by_query(mask):
    module, cells = make_attention(mask)
    found = module(cells, (5, 4))
    torch.testing.assert_close(found.double(), slow_attention(module, cells, (5, 4), mask), atol=1e-5, rtol=1e-5)


def test_eight_dimensions_are_heads_of_one():
    module, cells = make_attention(dim=8, n_heads=8)
    found = module(cells, (3, 3))
    torch.testing.assert_close(found.double(), slow_attention(module, cells, (3, 3), "own"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", ["own", "only"])
def test_parts_change_neither_answers_nor_gradients(mask, monkeypatch):
    def gradients():
        module, cells = make_attention(mask)
        cells.requires_grad_()
        found = module(cells, (5, 4))
        found.square().sum().backward()
        return [found.detach(), cells.grad, *(p.grad for p in module.parameters())]

    whole = gradients()
    shapes = []
    part = masked_attention._attend_part

    def watched(query, key, value, sigma, places, cell_places):
        shapes.append(len(places))
        return part(query, key, value, sigma, places, cell_places)

    n_images = 1 if mask == "only" else 2
    monkeypatch.setattr(masked_attention, "_PART_BYTES", {"cpu": 3 * 4 * n_images * 4 * 12})  # three queries
    monkeypatch.setattr(masked_attention, "_attend_part", watched)
    for one, other in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    assert sorted(shapes) == 2 * [2] + 12 * [3]  # each anew for its gradient


def test_no_part_is_larger_than_it_may_be(monkeypatch):
    """37 x 37 cells, 56 x 56 queries, 32 images: 4.4 GB of scores, 64 MiB of them at a time."""
    held = []

    def watched(query, key, value, sigma, places, cell_places):
        held.append(4 * len(key) * len(query) * len(places) * len(cell_places))
        return value.new_zeros(len(value), len(places), 32)

    monkeypatch.setattr(masked_attention, "_attend_part", watched)
    attention = MaskedAttention(2, rng=torch.Generator())
    with torch.no_grad():
        assert attention(torch.zeros(32, 37, 37, 2), (56, 56)).shape == (32, 16, 56, 56)
    assert sum(held) == 32 * 8 * 56**2 * 37**2 * 4
    assert max(held) <= 64 << 20


def slow_decoder(decoder, maps):
    """The release's order: the skip connection is enlarged, then mapped."""
    found = maps
    for convolve, enlarge in zip(decoder.convolve, decoder.enlarge, strict=True):
        found = F.relu(F.conv2d(found, convolve.weight, convolve.bias, padding=1))
        found = F.relu(F.conv_transpose2d(found, enlarge.weight, enlarge.bias, stride=2))
    large = F.interpolate(maps, scale_factor=8, mode="bilinear", antialias=True)
    return F.conv2d(found, decoder.final.weight, decoder.final.bias) + F.conv2d(
        large, decoder.skip.weight, decoder.skip.bias
    )


def test_maps_are_attention_and_decoder_for_each_entry_of_the_readout():
    head = build(channels=(1, 2), output_px=24).eval()
    features = [torch.randn(2, 1, 14, 14, 12)]
    found = head(head.prepare(features))
    assert found.shape == (2, 3, 24, 24)
    parts = [slow_decoder(n.decode, n.attend(features[0][:, 0], (3, 3))) for n in head.networks]
    torch.testing.assert_close(found, torch.cat(parts, dim=1), atol=1e-5, rtol=1e-5)


def test_another_query_grid_asks_the_same_weights():
    head = build(output_px=24).eval()
    cells = head.prepare([torch.randn(2, 1, 14, 14, 12)])
    head.output_px = 48
    network = head.networks[0]
    torch.testing.assert_close(head(cells), slow_decoder(network.decode, network.attend(cells, (6, 6))))
    head.output_px = 21  # no multiple of 8: from the next
    wanted = F.interpolate(slow_decoder(network.decode, network.attend(cells, (3, 3))), 21, mode="bilinear")
    torch.testing.assert_close(head(cells), wanted)


def test_depth_begins_at_its_bias():
    plain, biased = build(output_px=16), build(output_px=16, bias=1.0)
    cells = torch.randn(2, 14, 14, 12)
    torch.testing.assert_close(biased(cells), plain(cells) + 2)  # both of the last layers have it


def test_taps_of_several_grids_meet_on_the_finest():
    specs = [FeatureSpec("vit", ("a", "b"), "grid", (2, 3, 4), 32), FeatureSpec("net", ("x",), "grid", (4, 5, 2), 32)]
    features = [torch.randn(2, len(s.taps), *s.shape) for s in specs]
    found = build(specs=specs).prepare(features)
    assert found.shape == (2, 4, 5, 2 * 4 + 2)
    small = [F.interpolate(features[0][:, i].permute(0, 3, 1, 2), (4, 5), mode="bilinear") for i in range(2)]
    wanted = [tap.permute(0, 2, 3, 1) for tap in small] + [features[1][:, 0]]
    torch.testing.assert_close(found, torch.cat(wanted, dim=-1))


def test_findings_tell_how_far_each_head_looks():
    head = build(channels=(1, 2), n_heads=4)
    head.networks[1].attend.sigma.data[3] = 0.5
    entries = head.findings(None)["sigma"]
    assert [(e["network"], e["head"]) for e in entries] == [(n, h) for n in range(2) for h in range(4)]
    assert [round(e["value"], 6) for e in entries] == 7 * [0.05] + [0.5]
    assert [e["value"] for e in build(mask="shared").findings(None)["sigma"]] == pytest.approx(8 * [0.05])
    assert build(mask="none").findings(None) == {}


def test_wrong_uses_say_what_to_do():
    with pytest.raises(ValidationError, match="dim 12 is not a multiple of n_heads 8"):
        DeapRecipe(dim=12)
    with pytest.raises(UsageError, match=r"'deap' gives a map per image(.|\n)*use one of linear, "):
        build_head("deap", one_tap(12), 3, DeapRecipe(), 0)
    with pytest.raises(UsageError, match=r"'linear' gives one answer per image(.|\n)*use one of dense-linear, deap"):
        build_dense_head("linear", one_tap(12), Readout((1,)), DeapRecipe(), 0)
