"""Reductions against torch's own and against loops over images."""

import pytest
import torch
import torch.nn.functional as F

from loffta.errors import UsageError
from loffta.tasks import TASKS
from loffta.training.loss import Mix, class_weights, reduce_loss

LOSS = TASKS["classification"].loss


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(9, 4, generator=rng), torch.tensor([0, 0, 0, 0, 0, 1, 1, 3, 0])


def test_weights_are_inverse_frequencies(batch):
    _, labels = batch
    weights = class_weights(labels, 4)
    assert weights.tolist() == pytest.approx([9 / (4 * 6), 9 / (4 * 2), 0, 9 / (4 * 1)])


def test_reductions_equal_torchs(batch):
    logits, labels = batch
    torch.testing.assert_close(reduce_loss(LOSS, logits, labels), torch.nn.CrossEntropyLoss()(logits, labels))
    weights = class_weights(labels, 4)
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits, labels)
    torch.testing.assert_close(reduce_loss(LOSS, logits, labels, weights=weights), expected)
    assert expected.isfinite()


@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_images_count_for_both_classes(batch, weighted):
    logits, labels = batch
    rng = torch.Generator().manual_seed(1)
    mix = Mix(torch.randperm(9, generator=rng), torch.rand(9, generator=rng))
    weights = class_weights(labels, 4) if weighted else None
    total, norm = 0.0, 0.0
    for i in range(9):
        for label, share in ((labels[i], mix.weight[i]), (labels[mix.partner[i]], 1 - mix.weight[i])):
            share = float(share) * (float(weights[label]) if weighted else 1)
            total += share * float(F.cross_entropy(logits[i : i + 1], label[None]))
            norm += share
    assert float(reduce_loss(LOSS, logits, labels, weights=weights, mix=mix)) == pytest.approx(total / norm)


def test_unmixed_is_the_plain_mean(batch):
    logits, labels = batch
    mix = Mix(torch.arange(9).flip(0), torch.ones(9))
    torch.testing.assert_close(reduce_loss(LOSS, logits, labels, mix=mix), reduce_loss(LOSS, logits, labels))


@pytest.mark.parametrize("labels", [torch.zeros(3, 2, dtype=torch.long), torch.zeros(3)])
def test_weights_need_classes(labels):
    with pytest.raises(UsageError, match=r"one class per image(.|\n)*class_weights=false"):
        class_weights(labels, 2)
