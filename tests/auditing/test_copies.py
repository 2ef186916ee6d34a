"""Copies and distances: against scikit-learn's neighbours and a walk through the links."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from loffta.auditing import copies
from loffta.auditing.copies import far_distance, find_copies, find_nearest, mean_distances, near_distance
from loffta.auditing.vectors import Vectors, choose_vectors, join
from loffta.errors import LofftaError
from loffta.probes.knn import Nearest
from loffta.store.table import ImageTable
from tests.auditing.planted import make
from tests.caches import FakeStore, make_cache, make_table


def vectors_of(cache, rows=None):
    chosen = choose_vectors(cache, [], "mean")
    return Vectors(chosen, np.arange(len(cache.table)) if rows is None else rows, torch.device("cpu"))


def digits_cache(root, n=300):
    pixels = load_digits().data[:n].astype(np.float32)
    table = ImageTable("digits", [f"{i}.png" for i in range(n)], np.full(n, 9), ["all"] * n, np.full(n, -1), ())
    return make(root, table, pixels), pixels


@pytest.mark.parametrize("held", [512 << 20, 4 * 64 * 70])
def test_neighbours_and_distances_are_scikit_learns(tmp_path, held, monkeypatch):
    """In blocks of 70 images, too."""
    monkeypatch.setattr(copies, "_HELD_BYTES", held)
    cache, pixels = digits_cache(tmp_path)
    with vectors_of(cache) as vectors:
        nearest = find_nearest(vectors, 12)
    theirs = NearestNeighbors(n_neighbors=12, metric="cosine", algorithm="brute").fit(pixels)
    distance, row = theirs.kneighbors()  # without the images themselves
    np.testing.assert_allclose(1 - nearest.similarity.numpy(), distance, atol=1e-6)
    assert (nearest.row.numpy() == row).mean() > 0.99  # ties apart
    np.testing.assert_allclose(mean_distances(nearest), distance[:, :10].mean(axis=1), atol=1e-6)


def reachable(n, links):
    """The lowest image that each is linked with, step by step."""
    first = list(range(n))
    for _ in range(n):
        for a, b in links:
            first[a] = first[b] = min(first[a], first[b])
    return first


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_what_a_walk_through_the_links_reaches(seed):
    rng = np.random.default_rng(seed)
    similarity = np.sort(rng.uniform(0.5, 1.0, size=(60, 3)).astype(np.float32))[:, ::-1].copy()
    row = np.stack([rng.permutation([j for j in range(60) if j != i])[:3] for i in range(60)])
    hashes = [str(i) if i % 7 else "same" for i in range(60)]
    hashes[1] = ""
    hashes[2] = ""
    found = find_copies(Nearest(torch.from_numpy(similarity), torch.from_numpy(row)), hashes, near=0.3)
    distances = 1 - similarity.astype(np.float64)
    bound = 0.3 * np.median(distances[:, 0])
    links = [(i, int(row[i, k])) for i in range(60) for k in range(3) if distances[i, k] <= bound]
    assert links
    seven = [(0, i) for i in range(7, 60, 7)]
    assert found.first.tolist() == reachable(60, links + seven)
    assert found.threshold == pytest.approx(1 - bound)


def test_images_that_are_the_same_do_not_move_the_threshold():
    """Of ten images eight are there twice: the median of all distances would be 0, and nothing but these near."""
    assert near_distance(np.array([0.0] * 8 + [0.2, 0.4]), 0.1) == pytest.approx(0.03)
    assert near_distance(np.zeros(4), 0.1) == 1e-6


def test_more_copies_than_neighbours_are_one_group(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(size=(60, 16)).astype(np.float32)
    pixels[10:50] = pixels[10]
    table = ImageTable("noise", [f"{i}.png" for i in range(60)], np.full(60, 9), ["all"] * 60, np.full(60, -1), ())
    with vectors_of(make(tmp_path, table, pixels)) as vectors:
        found = find_copies(find_nearest(vectors, 20), [""] * 60)
    assert found.first.tolist() == [*range(10), *[10] * 40, *range(50, 60)]
    assert found.similarity[10] == pytest.approx(1.0, abs=1e-6)


def test_the_fence_is_tukeys_of_the_logarithms():
    distances = np.exp(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert far_distance(distances) == pytest.approx(np.exp(3 + 1.5 * 2))


def test_a_cosine_of_several_taps_is_the_mean_of_theirs():
    rng = np.random.default_rng(0)
    first, second = torch.tensor(rng.normal(size=(4, 2, 6))), torch.tensor(rng.normal(size=(4, 1, 3, 5)))
    ours = join([first, second])
    cosine = torch.nn.functional.cosine_similarity
    taps = [cosine(part[0], part[1], dim=0) for part in (first[:, 0], first[:, 1], second[:, 0, 0])]
    assert float(ours[0] @ ours[1]) == pytest.approx(float(sum(taps)) / 3, abs=1e-6)
    assert ours.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_what_cannot_be_pooled_is_told(tmp_path):
    rng = np.random.default_rng(0)
    grids, prefix = rng.normal(size=(16, 2, 2, 4)), rng.normal(size=(16, 1, 4))
    store = FakeStore("vit", {"last": grids}, kinds=("prefix",), prefixes={"last": prefix})
    cache = make_cache(tmp_path / "a", make_table([0, 1] * 8, ["train"] * 16), [store])
    with pytest.raises(LofftaError, match=r"(?s)not in the cache as .mean..*remedy: add it with"):
        choose_vectors(cache, [], "mean")
    (chosen,) = choose_vectors(cache, [], "class")
    assert chosen.spec.kind == "prefix"
    registers = FakeStore("vit", {"last": grids}, kinds=("prefix",), prefixes={"last": prefix}, registers_only=True)
    cache = make_cache(tmp_path / "b", make_table([0, 1] * 8, ["train"] * 16), [registers])
    with pytest.raises(LofftaError, match=r"(?s)no class token.*--pooling mean"):
        choose_vectors(cache, [], "class")
