"""The beginning of an extraction: the cache, its stores and arrays are there, the networks that are needed are loaded.

In: an ExtractConfig and the image set's listing.   Out: Begun, for `extract`, which fills the arrays, and for `plan`
and `online`, which only look.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from loffta.backbones import Backbone
from loffta.backbones.load import load_backbone
from loffta.config import BackboneConfig, ExtractConfig
from loffta.extraction.forward import Job
from loffta.extraction.jobs import Load, choose_specs, describe, look_asked, make_request, prepare, with_look
from loffta.extraction.targets import Dense, check_offered, prepare_targets
from loffta.files.durable import sweep_tree
from loffta.images.geometry import PixelGeometry, View, thumb_geometry
from loffta.look import OLD, Look
from loffta.machine import process
from loffta.machine.late import Sleep, pause
from loffta.machine.place import find_place, own_device
from loffta.machine.progress import say
from loffta.store.asked import Lack, asked_rows, look_at
from loffta.store.cache import MAX_THUMB_PX, Cache, CachedArray
from loffta.store.follow import Read
from loffta.store.paths import THUMB, CachePaths
from loffta.store.purge import describe_lost, describe_missing, forget_missing
from loffta.store.table import ImageTable
from loffta.store.target_files import UnitFiles
from loffta.zoo.names import ZOO


@dataclass(frozen=True)
class Begun:
    """An extraction whose arrays exist, before its first unit."""

    cache: Cache
    thumbs: CachedArray
    jobs: list[Job]
    asked: dict[int, Sequence[int]]  # rows by unit, of the images asked for and of this process's share
    share: tuple[int, int]  # this process's
    others: Mapping[int, Sequence[int]]  # the same of other shares, where it may help them
    look: Look = OLD  # of all that it writes
    dense: Sequence[Dense] = ()  # targets that it writes

    @property
    def n_images(self) -> int:
        """Images asked for, of this process's share."""
        return sum(map(len, self.asked.values()))

    def rows(self, unit: int) -> Sequence[int]:
        """Rows asked for of a unit, of its own share or another."""
        return self.asked[unit] if unit in self.asked else self.others[unit]

    def lack(self, unit: int, seen: Mapping[str, Collection[int]] | None = None) -> Lack:
        """What is still to be written of a unit; opens a done file of each array, as `look_at` says."""
        return look_at(self.forms, unit, self.rows(unit), seen)

    def lacks_features(self, lack: Lack) -> bool:
        """Whether features or thumbnails are among what a unit lacks."""
        return any(array.paths.name in lack.names for array in self.arrays)

    def lacks(self, unit: int) -> bool:
        """Whether features or thumbnails of a unit are still to be written; looks at the disk."""
        return not all(array.has_unit(unit, self.rows(unit)) for array in self.arrays)

    @property
    def thumb_geometry(self) -> PixelGeometry:
        """How images become thumbnails."""
        return thumb_geometry(self.cache.thumb_px, self.look)

    @property
    def sizes(self) -> list[PixelGeometry]:
        """Every size that an image is wanted in: the thumbnail's, and those of the networks that will run."""
        return [self.thumb_geometry, *(job.geometry for job in self.jobs if job.backbone is not None)]

    @property
    def arrays(self) -> list[CachedArray]:
        """All that it writes to: thumbnails, then features."""
        return [self.thumbs, *(array for job in self.jobs for array in job.arrays)]

    @property
    def all_arrays(self) -> list[CachedArray]:
        """The same, and the squares of dense targets."""
        return [*self.arrays, *(form for form in self.target_forms if isinstance(form, CachedArray))]

    @property
    def forms(self) -> list[CachedArray | UnitFiles]:
        """All that it writes."""
        return [*self.arrays, *self.target_forms]

    @property
    def target_forms(self) -> list[CachedArray | UnitFiles]:
        """All that it writes of dense targets."""
        return [form for dense in self.dense for form in dense.forms]


def settle(config: ExtractConfig) -> ExtractConfig:
    """The configuration in this machine's and the stores' terms: share, device, and timm's ids for short names.

    Raises:
        UsageError: no such device, or nobody says which share this process has.
    """
    named = tuple(b.model_copy(update={"name": ZOO.get(b.name, b.name)}) for b in config.backbones)
    share, device, helps = config.share, config.device, config.help_others
    if share == "auto":
        place = find_place()
        say(place.words)
        share, device, helps = (place.index, place.count), own_device(device, place), helps in (None, True)
    device = str(process.resolve_device(device))
    return config.model_copy(update={"backbones": named, "share": share, "device": device, "help_others": helps})


def begin(
    config: ExtractConfig,
    listing: ImageTable,
    load: Load,
    *,
    only: Collection[int] | None = None,
    views: Sequence[View | None] | None = None,
    read: Read | None = None,
    sleep: Sleep = pause,
) -> Begun:
    """Opens or makes the cache, its stores and arrays, and loads what is needed to fill them; writes no features.

    Args:
        listing: the image set as it is now.
        only: units to look at; None: all of this process's share.
        views: stores of each backbone to look at; None: those `config` asks for.
        read: gives the bytes of an image, for files that were moved.
        sleep: waits for files that other nodes have written.
    Raises:
        LofftaError: another recipe under the same name, images that are gone or altered.
    """
    load = functools.cache(load)
    if views is None:  # the plain store of every backbone, and one per view
        views = [None, *(View(config.view_seed, index) for index in range(config.views))]
    wanted = [(backbone, view) for backbone in config.backbones for view in views]
    new = with_look(config, Look())
    check_offered(config, listing)
    if not CachePaths(config.cache).config.exists():  # what cannot be had or is misspelt leaves no empty cache behind
        listing.refuse_alike()
        for backbone, view in wanted:
            info = describe(load(backbone), make_request(backbone, view, new))
            choose_specs(backbone, info.taps, config.kinds)
    thumb_px = min(MAX_THUMB_PX, max(b.image_px or MAX_THUMB_PX for b in config.backbones))
    look, unit_images = look_asked(new), config.unit_images
    cache = Cache.create(
        config.cache, listing, unit_images=unit_images, thumb_px=thumb_px, look=look, read=read, gone=config.gone
    )
    config = with_look(config, cache.look)  # which another process may have made, or an older loffta long ago
    sweep_tree(cache.paths.root)  # what killed processes left half-written
    _say_missing(*forget_missing(cache, sleep))
    fresh = not cache.paths.target(THUMB).metadata.exists()  # a finished cache is not even touched
    thumbs = cache.extend(cache.thumbs(create=fresh))
    asked, others = _shared_out(asked_rows(cache, config.splits, config.limit), config, only)
    jobs = [prepare(cache, backbone, view, config, load, asked, others) for backbone, view in wanted]
    dense = prepare_targets(cache, config, listing, [job.store.info.recipe for job in jobs])
    return Begun(cache, thumbs, jobs, asked, _share(config), others, look_asked(config), dense)


def _share(config: ExtractConfig) -> tuple[int, int]:
    assert isinstance(config.share, tuple), "`settle` has found which one it is"
    return config.share


def _shared_out(
    asked: Mapping[int, Sequence[int]], config: ExtractConfig, only: Collection[int] | None
) -> tuple[dict[int, Sequence[int]], dict[int, Sequence[int]]]:
    """Own units, and those of others where they are helped; by their numbers, so no locks are needed."""
    index, count = _share(config)
    own: dict[int, Sequence[int]] = {}
    others: dict[int, Sequence[int]] = {}
    for unit, rows in asked.items():
        if only is None or unit in only:
            (own if unit % count == index else others)[unit] = rows
    return own, others if config.help_others else {}


def backbone_loader(device: str | torch.device) -> Load:
    """Makes backbones on a device, timm's and custom ones."""
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions; the recipe says fp32 on every device

    def load(wanted: BackboneConfig) -> Backbone:
        return load_backbone(
            wanted.name, weights=wanted.weights, image_px=wanted.image_px, taps=wanted.taps, device=device
        )

    return load


def _say_missing(lost: list[str], missing: dict[str, list[int]]) -> None:
    if lost or missing:
        found = [describe_lost(lost)] if lost else []
        found += [describe_missing(missing)] if missing else []
        said = (
            "\n".join(found) + "\n  was the file system purged? These units are not finished any more; "
            "this command writes anew those of its own stores"
        )
        say(said, keep="\n")
