"""Remembered patches against scikit-learn's neighbours and loops over pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors

from loffta.heads import HEADS, Head, build_dense_head
from loffta.heads import dense_knn as module
from loffta.targets import IGNORE, Readout
from loffta.tokens import FeatureSpec

C, H, W, PX = 3, 4, 2, 12
SPECS = [FeatureSpec("net", ("a", "b"), "grid", (H, W, 5), 32)]


def build(**recipe):
    made = HEADS["dense-knn"].recipe(**{"output_px": PX} | recipe)
    return build_dense_head("dense-knn", SPECS, Readout((C,)), made, 0)


def draw(n_images, seed=0):
    """Features, and labels of blobs with ignored pixels among them."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (n_images, 1, 4, 4), generator=rng).float()
    labels = F.interpolate(labels, (PX, PX), mode="nearest")[:, 0].to(torch.uint8)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = IGNORE
    return torch.randn(n_images, 2, H, W, 5, generator=rng), labels


def taught(features, labels, seed=0, **recipe):
    head, rng = build(**recipe), torch.Generator().manual_seed(seed)
    for part in (slice(0, 2), slice(2, None)):
        head.remember(head.prepare([features[part]]), labels[part], len(features), rng)
    head.finish(rng)
    return head


def cells_of(features):
    """[B * H * W, 10], patch by patch."""
    return features.permute(0, 2, 3, 1, 4).flatten(0, 2).flatten(1).numpy()


def shares_by_loops(labels):
    found = []
    for one in labels.numpy():
        for i in range(H):
            for j in range(W):
                pixels = one[i * PX // H : (i + 1) * PX // H, j * PX // W : (j + 1) * PX // W]
                pixels = pixels[pixels != IGNORE]
                found.append([np.mean(pixels == c) if len(pixels) else np.nan for c in range(C)])
    return np.array(found)


def test_all_labelled_patches_are_kept_where_they_have_room():
    features, labels = draw(5)
    labels[1, :3, :6] = labels[3, 9:, 6:] = IGNORE
    head, shares = taught(features, labels), shares_by_loops(labels)
    known = ~np.isnan(shares).any(axis=1)
    assert known.sum() == 5 * H * W - 2
    cells = cells_of(features)
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    order = (head.cells.numpy() @ cells[known].T).argmax(axis=1)
    assert sorted(order) == list(range(known.sum()))
    np.testing.assert_allclose(head.cells, cells[known][order], atol=1e-6)
    np.testing.assert_allclose(head.shares, shares[known][order], atol=1e-6)


@pytest.mark.parametrize("n_cells", [module._CELLS, 100])
def test_neighbours_vote_by_a_softmax_of_their_cosines(monkeypatch, n_cells):
    monkeypatch.setattr(module, "_CELLS", n_cells)
    (features, labels), (asked, _) = draw(6), draw(3, seed=1)
    head = taught(features, labels, neighbours=7, temperature=0.1)
    known = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(head.cells.numpy())
    distance, place = known.kneighbors(cells_of(asked))
    voices = np.exp((1 - distance) / 0.1)
    shares = (voices[:, :, None] * head.shares.numpy()[place]).sum(axis=1) / voices.sum(axis=1, keepdims=True)
    maps = torch.from_numpy(shares.reshape(3, H, W, C)).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, (PX, PX), mode="bilinear").float()
    torch.testing.assert_close(head(head.prepare([asked])), expected, atol=1e-5, rtol=1e-5)


def test_fewer_patches_than_neighbours_all_vote():
    features, labels = draw(3)
    few = taught(features, labels, memory=3)
    asked = few.prepare([features])
    assert len(few.cells) == 3
    assert torch.allclose(few(asked).sum(dim=1), torch.ones(3, PX, PX))


@pytest.mark.parametrize(("memory", "of_each"), [(2, None), (7, 1), (23, 4), (100, 8)])
def test_a_memory_takes_as_many_of_each_image(memory, of_each):
    features, labels = draw(5)
    labels[labels == IGNORE] = 0
    one, again, other = (taught(features, labels, seed, memory=memory) for seed in (0, 0, 1))
    whole = taught(features, labels)
    image = (one.cells @ whole.cells.T).argmax(dim=1) // (H * W)
    assert len(one.cells) <= memory
    if of_each is None:
        assert len(one.cells) == 2
    else:
        order = (whole.cells @ F.normalize(torch.from_numpy(cells_of(features)), dim=1).T).argmax(dim=1) // (H * W)
        assert torch.bincount(order[(one.cells @ whole.cells.T).argmax(dim=1)], minlength=5).tolist() == [of_each] * 5
    assert len(image) == len(again.cells)
    assert torch.equal(one.cells, again.cells)
    if of_each != 8:
        assert not torch.equal(one.cells, other.cells)


def test_rare_classes_are_preferred():
    """One patch in eight is of another class; an even draw of two would have it in a quarter of the images."""
    features, labels = draw(400)
    labels[:] = 0
    labels[:, :3, :6] = 1
    head = taught(features, labels, memory=800)
    assert (head.shares[:, 1] > 0).float().mean() > 0.4  # of 2 of each image, so in over 80 % of the images


def test_what_is_remembered_comes_back():
    features, labels = draw(4)
    head, other = taught(features, labels), build()
    other.load_state_dict(head.state_dict())
    prepared = head.prepare([features])
    assert torch.equal(other(prepared), head(prepared))
    assert head.n_adapter_parameters() == 0
    assert isinstance(head, Head)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head(prepared[order]), head(prepared)[order])
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({"cells": torch.zeros(4, 9), "shares": torch.zeros(4, C)})
