"""The attentive probe against the plain computation: keys and values of every token, torch's own attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loffta.heads.attention import AttentiveProbe, average_attention, drop

WIDTHS = [20, 20, 12, 20, 12]
N_HEADS = 3  # heads of width 12


class PlainProbe(nn.Module):
    """As the paper writes it; every layer is torch's."""

    def __init__(self, probe):
        super().__init__()
        dim, inner = probe.query.numel(), probe.map_key.shape[0] * probe.map_key.shape[1]
        self.n_heads, self.query = len(probe.map_key), nn.Parameter(probe.query.detach().clone()[None, None])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.maps = nn.ModuleList(nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.output, self.batch_norm = nn.Linear(inner, dim), nn.BatchNorm1d(dim)
        self.classify = nn.Linear(dim, probe.classify.out_features)
        for norm, name in zip(self.norms, ("norm_query", "norm_key", "norm_value"), strict=True):
            norm.load_state_dict(getattr(probe, name).state_dict())
        for linear, name in zip(self.maps, ("map_query", "map_key", "map_value"), strict=True):
            linear.weight.data = getattr(probe, name).detach().flatten(0, 1).clone()
        for name in ("output", "batch_norm", "classify"):
            getattr(self, name).load_state_dict(getattr(probe, name).state_dict())

    def project(self, tokens):
        inputs = (self.query.expand(len(tokens), -1, -1), tokens, tokens)
        mapped = [m(norm(given)) for m, norm, given in zip(self.maps, self.norms, inputs, strict=True)]
        return [x.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for x in mapped]  # [B, heads, 1 or T, E]

    def finish(self, attended):
        return self.classify(self.batch_norm(self.output(attended.transpose(1, 2).flatten(1))))

    def forward(self, tokens):
        return self.finish(F.scaled_dot_product_attention(*self.project(tokens)))


def make_probe(widths=WIDTHS, n_heads=N_HEADS, n_classes=4, **options):
    """In float64, every parameter far from its initial value."""
    rng = torch.Generator().manual_seed(0)
    probe = AttentiveProbe(widths, n_classes, n_heads=n_heads, rng=rng, **options)
    for parameter in probe.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return probe.double()


def draw_tokens(n_images=6, widths=WIDTHS):
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randn(n_images, len(widths), max(widths), generator=rng, dtype=torch.float64)
    for token, width in enumerate(widths):
        tokens[:, token, width:] = 0
    return F.normalize(tokens, dim=-1)


@pytest.mark.parametrize("training", [True, False])
def test_logits_and_gradients_equal_the_plain_computation(training):
    probe, tokens = make_probe().train(training), draw_tokens()
    plain = PlainProbe(probe).double().train(training)
    logits, expected = probe(tokens), plain(tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=1e-10)
    for result in (logits, expected):
        F.cross_entropy(result, torch.arange(6) % 4).backward()
    pairs = [(probe.query, plain.query), (probe.output.weight, plain.output.weight)]
    pairs += zip((probe.map_query, probe.map_key, probe.map_value), (m.weight for m in plain.maps), strict=True)
    for norm, other in zip((probe.norm_query, probe.norm_key, probe.norm_value), plain.norms, strict=True):
        pairs += [(norm.weight, other.weight), (norm.bias, other.bias)]
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad.flatten(), other.grad.flatten(), atol=1e-12, rtol=1e-8)


def test_attention_is_that_of_the_keys():
    probe, tokens = make_probe(), draw_tokens()
    query, key, _ = PlainProbe(probe).double().project(tokens)
    expected = (query @ key.transpose(2, 3) / math.sqrt(12)).softmax(dim=3)[:, :, 0]
    torch.testing.assert_close(probe.attention(tokens), expected, atol=1e-12, rtol=1e-10)
    assert expected.shape == (6, N_HEADS, 5)
    assert (expected - 0.2).abs().max() > 0.05


def test_dropout_is_that_of_the_weights():
    """Dropped weights do not sum to 1, which the folded bias of the values' norm must know."""
    probe, tokens = make_probe(attention_dropout=0.4, jitter_std=0).eval(), draw_tokens()
    plain = PlainProbe(probe).double().eval()
    kept = torch.rand(6, N_HEADS, 5, generator=torch.Generator().manual_seed(3)) >= 0.4
    assert 0 < kept.sum() < kept.numel()
    query, key, value = plain.project(tokens)
    weights = (query @ key.transpose(2, 3) / math.sqrt(12)).softmax(dim=3) * kept[:, :, None] / 0.6
    found = probe(tokens, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, plain.finish(weights @ value), atol=1e-12, rtol=1e-10)


def test_order_of_the_tokens_does_not_matter():
    widths = [20] * 5
    probe, tokens = make_probe(widths).eval(), draw_tokens(widths=widths)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(probe(tokens[:, order]), probe(tokens), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(probe.attention(tokens[:, order]), probe.attention(tokens)[:, :, order])


@pytest.mark.parametrize(
    ("dim", "n_heads", "width"), [(768, 24, 64), (384, 24, 32), (1024, 48, 42), (768, 8, 192), (64, 24, 8), (8, 20, 8)]
)
def test_head_width(dim, n_heads, width):
    assert AttentiveProbe([dim] * 3, 2, n_heads=n_heads, rng=torch.Generator()).head_width == width


def test_initial_weights_are_those_that_torch_draws():
    """The official code has torch's linear layers as they are, and a query that is normal with 0.02."""
    probe = AttentiveProbe([384] * 4, 10, n_heads=4, rng=torch.Generator().manual_seed(0))
    assert probe.query.std().item() == pytest.approx(0.02, rel=0.1)
    plain = PlainProbe(probe)
    for linear in (*plain.maps, plain.output, plain.classify):
        fresh = nn.Linear(linear.in_features, linear.out_features)
        assert linear.weight.std().item() == pytest.approx(fresh.weight.std().item(), rel=0.03)
        assert linear.weight.abs().max().item() == pytest.approx(fresh.weight.abs().max().item(), rel=0.01)
    for linear in (plain.output, plain.classify):
        assert 0.5 < linear.bias.abs().max().item() * math.sqrt(linear.in_features) <= 1


def test_noise_comes_from_its_generator_alone():
    probe, tokens = make_probe(attention_dropout=0.3), draw_tokens()
    probe.eval()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = probe(tokens, torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(probe(tokens, torch.Generator().manual_seed(2)), first)
    assert not torch.allclose(probe(tokens, torch.Generator().manual_seed(3)), first)
    assert torch.equal(probe(tokens), probe(tokens))
    quiet = make_probe(jitter_std=0).eval()
    assert torch.equal(quiet(tokens, torch.Generator().manual_seed(2)), quiet(tokens))
    certain = make_probe(jitter_probability=0).eval()
    assert torch.equal(certain(tokens, torch.Generator().manual_seed(2)), certain(tokens))


def test_training_in_bfloat16_is_near_float32():
    """With the same noise, dropout and statistics of the batch."""
    probe, tokens = make_probe(attention_dropout=0.3, jitter_std=0.01).float().train(), draw_tokens(32).float()
    expected = probe(tokens, torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = probe(tokens, torch.Generator().manual_seed(2))
        assert probe.attention(tokens).dtype == torch.float32
    torch.testing.assert_close(logits.float(), expected, atol=0.15, rtol=0.05)
    F.cross_entropy(logits.float(), torch.arange(32) % 4).backward()
    assert all(parameter.grad.isfinite().all() for parameter in probe.parameters())


def test_padding_gets_noise_as_the_rest():
    """The official code pads, and then adds the noise (`CombinedFeaturesDataset`)."""
    seen = []
    probe, tokens = make_probe(jitter_std=1.0, jitter_probability=1).eval(), draw_tokens()
    probe._standardise = lambda given: seen.append(given) or F.layer_norm(given, given.shape[2:])
    probe(tokens, torch.Generator().manual_seed(0))
    assert (seen[0] != tokens).all()
    assert not tokens[:, 2, 12:].any()


def test_dropout_keeps_the_expectation():
    dropped = drop(torch.ones(500, 4, 10), 0.3, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_average_attention_is_over_images_then_heads():
    probe, tokens = make_probe(), draw_tokens()
    weights = probe.attention(tokens)
    average = average_attention(weights)
    for token in range(5):
        per_head = [sum(weights[i, head, token].item() for i in range(6)) / 6 for head in range(N_HEADS)]
        assert average[token].item() == pytest.approx(sum(per_head) / N_HEADS)
    assert average.sum().item() == pytest.approx(1)
    assert average_attention(weights.float()).dtype == torch.float64
