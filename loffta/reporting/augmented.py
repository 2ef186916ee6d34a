"""What augmentation does to features, as pictures: a feature's strongest three directions become red, green and blue.

In:  a cache, one of a run's features, its AugmentConfig.   Out: a section of HTML for `page`. One basis of colours
serves all maps of the section, so that equal colours are equal features; the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from loffta.augment import AugmentConfig, apply, draw, resolve
from loffta.config import parse
from loffta.dataset.features import Feature, choose_features
from loffta.errors import LofftaError
from loffta.heads import find_head
from loffta.reporting.gallery import png_uri
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import count, escape
from loffta.store.cache import Cache, CachedArray
from loffta.store.reader import ArrayReader
from loffta.store.zarr_reader import open_array

N_IMAGES = 4
N_DRAWS = 3
_CLIP = (1, 99)  # percentiles of the plain maps that become the darkest and the brightest


def best_augmented(ranked: Sequence[LoadedRun]) -> str:
    """The section of the first of these runs that was trained on augmented grids of a cache that is still there."""
    for run in ranked:
        try:
            config = resolve(run.config.augment)
            if run.cache is None or config == AugmentConfig():
                continue
            recipe = parse(find_head(run.config.head).recipe, run.config.recipe, where="recipe")
            features = choose_features(run.cache, run.config.features, recipe.kinds(), default_taps="all")
            grids = [feature for feature in features if feature.spec.kind == "grid"]
            section = augmented_section(run.cache, grids[0], config, run.config.data_seed) if grids else ""
        except LofftaError as error:  # the report stands without pictures
            return f'<h2>Augmented features</h2><p class="note">No pictures: {escape(error.what)}.</p>'
        if section:
            return f"{section}<p>Of {escape(run.row.name)}, the best run that was trained like this.</p>"
    return ""


def augmented_section(cache: Cache, feature: Feature, config: AugmentConfig, seed: int) -> str:
    """A row per image: its thumbnail where there is one, its plain map, and the map augmented a few times.

    Shown is the last of the feature's taps.

    Args:
        seed: of the draws; any number, they are not those of a training.

    Returns:
        HTML; empty where nothing is augmented, or the feature is no grid.
    Raises:
        LofftaError: images of the feature or of the thumbnails are damaged.
    """
    if feature.spec.kind != "grid" or config == AugmentConfig():
        return ""
    thumbs = cache.thumbs()
    rows, have_thumbs = _choose_rows(feature, thumbs)
    if not len(rows):
        return ""
    plain = _read(feature, rows)
    batch = plain.repeat(N_DRAWS, 1, 1, 1, 1)  # all images, again and again: partners for mixing are other images, too
    device = torch.device("cpu")
    parameters = draw(config, len(batch), torch.Generator().manual_seed(seed), device)
    augmented = apply([batch], [feature.spec], parameters)[0]
    colour = Colours(plain[:, -1].float().numpy())
    maps = [colour.paint(part.float().numpy()) for part in (plain[:, -1], *torch.chunk(augmented[:, -1], N_DRAWS))]
    images = [ArrayReader(thumbs.paths).read(rows)] if have_thumbs else []
    strips = [
        _strip([picture[i] for picture in images], [painted[i] for painted in maps], cache.table.keys[row])
        for i, row in enumerate(rows.tolist())
    ]
    return _describe(feature, config, have_thumbs) + "".join(strips)


class Colours:
    """A basis of three directions and their range, from maps [B, H, W, D]."""

    def __init__(self, maps: Float[np.ndarray, "B H W D"]) -> None:
        tokens = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
        self._mean = tokens.mean(0)
        self._axes = principal_axes(tokens - self._mean, 3)
        low, high = np.percentile(self._project(tokens), _CLIP, axis=0)
        self._low, self._range = low, np.where(high > low, high - low, 1)

    def paint(self, maps: Float[np.ndarray, "B H W D"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Maps as pictures of one pixel a token; values beyond the range are clipped."""
        shares = (self._project(maps) - self._low) / self._range
        picture: NDArray[np.uint8] = (255 * shares.clip(0, 1)).round().astype(np.uint8)
        return picture

    def _project(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        projected: NDArray[np.float64] = (tokens - self._mean) @ self._axes.T
        return projected


def principal_axes(tokens: Float[np.ndarray, "N D"], n_axes: int) -> Float[np.ndarray, "{n_axes} D"]:
    """Directions of the largest variance of centred tokens, strongest first; zeros where there are fewer.

    A direction and its opposite are equally right: the entry of the largest magnitude is positive.
    """
    values, vectors = np.linalg.eigh(tokens.T @ tokens)  # ascending
    strongest = vectors.T[::-1][:n_axes]
    lengths = values[::-1][:n_axes]
    largest = np.take_along_axis(strongest, np.abs(strongest).argmax(1)[:, None], axis=1)
    axes = np.zeros((n_axes, tokens.shape[1]))
    present = lengths > 1e-12 * max(lengths[0], 1e-300)
    axes[: len(strongest)][present] = (strongest * np.sign(largest))[present]
    return axes


def _choose_rows(feature: Feature, thumbs: CachedArray) -> tuple[NDArray[np.int64], bool]:
    """Images at even distances among those that have the feature, and a thumbnail if any has; whether it is so."""
    ready = np.flatnonzero(feature.array.ledger.ready)
    both = np.intersect1d(ready, np.flatnonzero(thumbs.ledger.ready))
    candidates = both if len(both) else ready
    places = np.linspace(0, len(candidates) - 1, min(N_IMAGES, len(candidates))).round().astype(np.int64)
    return candidates[places], len(both) > 0


def _read(feature: Feature, rows: NDArray[np.int64]) -> torch.Tensor:
    return feature.finish(torch.from_numpy(open_array(feature.array.paths).read(rows, feature.raw_taps)))


def _describe(feature: Feature, config: AugmentConfig, with_thumbs: bool) -> str:
    changed = {k: v for k, v in config.model_dump().items() if v != getattr(AugmentConfig(), k)}
    settings = ", ".join(f"{key} {value}" for key, value in changed.items())
    height, width, _ = feature.spec.shape
    columns = [*(["the image"] if with_thumbs else []), "its features as stored", count(N_DRAWS, "draw")]
    return (
        "<h2>Augmented features</h2>"
        f"<p>{escape(feature.spec.backbone)}, {escape(feature.spec.taps[-1])}, {height} x {width} tokens. From left to "
        f"right: {', '.join(columns)} of what a head is trained on instead. The three strongest directions of the "
        "stored features are red, green and blue. Beside the image there is what <code>fill</code> says; zeros have a "
        f'colour, too.</p><p class="note">{escape(settings)}</p>'
    )


def _strip(images: Sequence[NDArray[np.uint8]], maps: Sequence[NDArray[np.uint8]], key: str) -> str:
    pictures = [f'<img src="{png_uri(image)}" alt="the image">' for image in images]
    names = ["as stored", *(f"draw {i + 1}" for i in range(len(maps) - 1))]
    pictures += [f'<img class="map" src="{png_uri(m)}" alt="{name}">' for m, name in zip(maps, names, strict=True)]
    return f'<figure class="strip"><div>{"".join(pictures)}</div><figcaption>{escape(key)}</figcaption></figure>'
