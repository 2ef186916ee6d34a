"""Stage one: runs frozen backbones over an image set and writes their tokens to the cache.

In: an ExtractConfig.   Out: finished units in the cache, and a summary. Called by `loffta extract`; a second call
continues, and does nothing (loads no model) when all is there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain

from loffta.config import ExtractConfig
from loffta.extraction.batch_size import set_batch_sizes
from loffta.extraction.begin import Begun, backbone_loader, begin, settle
from loffta.extraction.calibrate import calibrate
from loffta.extraction.carried import carry_over
from loffta.extraction.forward import Job
from loffta.extraction.helping import Helper
from loffta.extraction.jobs import Load, stagger_s, stoppable
from loffta.extraction.target_alone import write_alone
from loffta.extraction.target_plan import file_work, files_size
from loffta.extraction.target_report import TargetReport, judge_targets, look_again, report_targets, say_altered
from loffta.extraction.target_writer import TargetWriter
from loffta.images.batches import ImageStream, UnitImages, decoding_threads, judge_bad
from loffta.images.geometry import View
from loffta.images.sources import ImageSource, open_source
from loffta.look import OLD
from loffta.machine import process
from loffta.machine.deadline import check_time, has_time
from loffta.machine.progress import Progress, say
from loffta.machine.usage import Meter
from loffta.store.asked import Lack, asked_rows, list_done
from loffta.store.cache import CachedArray
from loffta.store.handover import Pixels
from loffta.store.ledger import BAD, read_ledger, unfinished
from loffta.store.seen import read_seen
from loffta.store.sink import UnitSink
from loffta.store.space import check_room
from loffta.store.table import ImageTable

_AS_OF_OLD = (
    "transparent images are shown on black and values are clipped, as when this cache was made; "
    "--background white --range auto makes a store of its own"
)


@dataclass(frozen=True)
class StoreReport:
    """One store as it is now."""

    store: str  # its name in the cache
    label: str
    taps: list[str]
    bytes: int


@dataclass
class Report:
    """What one call did."""

    images: int = 0  # read and decoded by this call
    bad: int = 0  # quarantined ones in the cache; while other shares are at work, of this share's units
    flat: int = 0  # images in the cache that are of a single colour, as far as their units say
    pages_ignored: int = 0  # frames or pages behind the first
    several_pages: int = 0  # images that have such
    untold: int = 0  # images of units that an older version wrote, of which none of this is known
    not_taken: dict[str, int] = field(default_factory=dict)  # files of the image set by ending
    units: int = 0  # written by this call
    helped: int = 0  # of other shares, finished by this call
    twice: int = 0  # begun by this call, and finished by another process first
    seconds: float = 0.0
    cost: dict[str, float | None] = field(default_factory=dict)  # as `machine.usage` has it; of this call
    waited_s: float = 0.0  # of these, for images that were not decoded in time
    unwritten_images: int = 0  # asked for, and of other shares: they have no features yet
    unwritten_of: list[str] = field(default_factory=list)  # these shares, as --shard takes them
    stores: list[StoreReport] = field(default_factory=list)
    target_units: int = 0  # of dense targets, written by this call
    targets: list[TargetReport] = field(default_factory=list)


def run(
    config: ExtractConfig,
    stop: process.StopFlag,
    *,
    only: Collection[int] | None = None,
    views: Sequence[View | None] | None = None,
) -> Report:
    """Extracts all that `config` asks for and the cache lacks.

    `only` and `views` as `extract` has them.
    """
    process.cap_threads()
    config = settle(config)
    return extract(config, open_source(config.source), backbone_loader(config.device), stop, only=only, views=views)


def extract(
    config: ExtractConfig,
    source: ImageSource,
    load: Load,
    stop: process.StopFlag,
    *,
    only: Collection[int] | None = None,
    views: Sequence[View | None] | None = None,
) -> Report:
    """The driver: prepare a job per backbone and view, then unit by unit decode once and feed every job.

    Args:
        only: units to look at; None: all of this process's share.
        views: stores of each backbone to look at, None standing for the plain one; None: those `config` asks for.
    Raises:
        Stopped: a signal came; finished units are kept.
        TooManyBadImages: over `max_bad_frac`; all good images are in the cache.
        LofftaError: another recipe under the same name, a changed image set, no space.
    """
    meter = Meter()
    process.keep_freed_memory()
    with stop.at_once("listing the images"):
        listing = source.listing()  # before any model is loaded: a faulty table should not cost that wait
    load = stoppable(load, stop, stagger_s(config))
    begun = begin(config, listing, load, only=only, views=views, read=source.read, sleep=stop.sleep)
    if not config.ignore_space:
        with stop.at_once("looking for room; some targets are read, to know how large they are"):
            files = files_size(file_work(begun.cache, begun.dense, source, begun.asked))
        check_room(begun.cache, begun.all_arrays, begun.asked, files)
    seen = list_done(begun.forms)
    lacks = {unit: begun.lack(unit, seen) for unit in begun.asked}
    todo = [unit for unit, lack in lacks.items() if begun.lacks_features(lack)]
    whole = lacks.keys() - {*todo}
    bare = [unit for unit, lack in lacks.items() if lack.names and unit in whole]
    elsewhere = unfinished([array.paths for array in begun.arrays], begun.others)
    look_again(begun.cache, begun.dense, source)
    if todo or elsewhere:
        say(process.describe(begun.jobs[0].device))
        if begun.look == OLD and config.background is None and config.range is None:
            say(_AS_OF_OLD)
    n_images = sum(len(lacks[unit].rows) for unit in todo)
    with stop.at_once("looking for the fastest batch size"):
        batch_size = set_batch_sizes(begun.jobs, config.batch_size, n_images)
    report, helper = Report(), Helper(begun)
    with (
        Progress("extract", n_images, "images") as progress,
        decoding_threads(process.available_cpus()) as pool,
        UnitSink(begun.jobs[0].device) as sink,
        TargetWriter(begun.cache, begun.dense, source, pool, sink) as targets,
    ):
        for job in begun.jobs if todo or elsewhere else []:
            if job.backbone is not None:
                calibrate(begun.cache, job, source, pool, stop)
        due = _due(begun, chain(todo, helper.units()), lacks)
        stream = ImageStream(source, begun.cache.table, begun.sizes, pool, due, n_ahead=2 * batch_size)
        _extract_units(begun, stream, lacks, helper, batch_size, sink, targets, stop, progress)
        report.images, report.waited_s = helper.n_images, stream.waited_s
        write_alone(begun.cache, begun.arrays, {unit: begun.asked[unit] for unit in bare}, targets, stop)
        report.target_units = targets.units
    say_altered(begun.cache, targets.altered)
    report.units = len(helper.handed)
    report.helped, report.twice = helper.count(sink.late)
    report.seconds, report.cost = meter.seconds, meter.cost().as_json()
    _sum_up(report, begun, config, listing)
    return report


def _sum_up(report: Report, begun: Begun, config: ExtractConfig, listing: ImageTable) -> None:
    """What the cache holds now, written by whichever process; TooManyBadImages where these are too many.

    Of a share that is not the last: what its own units hold.
    """
    report.unwritten_images, report.unwritten_of = _look_at_others(begun, config)
    # whoever is last tells of all units: 1,000 workers that read the done files of all would read 100 million
    own = begun.asked if report.unwritten_images else None
    filled = _reread(begun)
    bad = read_ledger(filled.paths, filled.layout, filled.images, only=own).bad
    for name, value in asdict(read_seen(filled.paths, only=own)).items():
        setattr(report, name, value)
    report.not_taken = dict(listing.not_taken)
    report.bad = len(bad)
    report.stores = [_describe(job, own) for job in begun.jobs]
    asked = asked_rows(begun.cache, config.splits, config.limit)  # by all processes
    bad = {row: reason for row, reason in bad.items() if row not in begun.cache.table.gone}
    found = {row: reason for row, reason in bad.items() if row in asked.get(row // begun.cache.unit_images, ())}
    judge_bad(
        found,
        begun.cache.table.keys,
        sum(map(len, asked.values())),
        config.max_bad_frac,
        done=begun.cache.paths.root,
        remedy="mend or remove the images and extract into a new cache",
    )
    report.targets = report_targets(begun.cache, begun.dense, asked)
    judge_targets(begun.cache, report.targets, config.max_bad_frac)


def _due(begun: Begun, units: Iterable[int], lacks: dict[int, Lack]) -> Iterator[tuple[int, Sequence[int]]]:
    """The rows of each unit that is still lacking when its turn comes, by a look that is noted in `lacks`."""
    for unit in units:
        lacks[unit] = begun.lack(unit)  # another process may have written it
        if begun.lacks_features(lacks[unit]):
            yield unit, [row for row in lacks[unit].rows if row not in begun.cache.table.gone]


def _extract_units(
    begun: Begun,
    stream: ImageStream,
    lacks: Mapping[int, Lack],
    helper: Helper,
    batch_size: int,
    sink: UnitSink,
    targets: TargetWriter,
    stop: process.StopFlag,
    progress: Progress,
) -> None:
    """Unit by unit, while there is time for one; those that others have finished first are given up."""
    longest_s = 0.0  # of a unit
    for images in stream:
        if helper.handed:  # one is begun in any case, else a short job would never get on
            if images.unit in begun.others and not has_time(longest_s):
                return
            check_time(longest_s, f"unit {images.unit}")
        if helper.is_taken(images.unit):
            images.drop()
            continue
        if images.unit in begun.others:
            progress.expect(len(images.rows))
        began = time.monotonic()
        for n_done in _extract_unit(begun, images, lacks[images.unit], batch_size, sink, targets, stop):
            waiting = f"{stream.waited_s / progress.seconds:.0%} waiting for images"
            progress.advance(n_done, f"{waiting}, {sink.n_bytes / 1e9:.1f} GB")
            if helper.is_taken(images.unit):
                helper.given_up.add(images.unit)
                images.drop()
                targets.give_up()
                sink.give_up(images.unit)
                break
        else:
            helper.handed.add(images.unit)
        longest_s = max(longest_s, time.monotonic() - began)
        helper.n_images += len(images.statuses)


def _extract_unit(
    begun: Begun,
    images: UnitImages,
    lack: Lack,
    batch_size: int,
    sink: UnitSink,
    targets: TargetWriter,
    stop: process.StopFlag,
) -> Iterator[int]:
    """Decodes one unit once and hands the sink what each job lacks of it; yields how many images are behind it."""
    unit = images.unit
    doing = f"extracting unit {unit}; finished units are kept"
    stop.check(doing)
    thumb_writer = sink.open(begun.thumbs, unit) if begun.thumbs.paths.name in lack.names else None
    lacking = [[array for array in job.arrays if array.paths.name in lack.names] for job in begun.jobs]
    work = [(job, [(a, sink.open(a, unit)) for a in arrays]) for job, arrays in zip(begun.jobs, lacking, strict=True)]
    targets.begin(unit, lack.rows, begun.rows(unit))
    for batch in stop.each(images.batches(batch_size), doing):
        names = [begun.cache.table.keys[row] for row in batch.rows]
        if thumb_writer is not None:
            sink.append([(thumb_writer, Pixels(batch.pixels[begun.thumb_geometry]))], batch.rows, names)
        for job, writers in work:
            if writers:
                parts = job.hand_over(batch.pixels[job.geometry], [array for array, _ in writers], names)
                for part, found in stop.each(parts, doing):
                    handed = [(writer, tokens) for (_, writer), tokens in zip(writers, found, strict=True)]
                    sink.append(handed, batch.rows[part], names[part])
        targets.feed(images.statuses)
        yield len(batch.rows)
    yield sum(status.status == BAD for status in images.statuses)
    targets.feed(images.statuses)
    targets.commit()
    gone = [row for row in lack.rows if row in begun.cache.table.gone]
    of = begun.cache.table.identity(sorted((*images.rows, *gone)))
    made = {"device": str(begun.jobs[0].device), "versions": process.versions(), "images": of}
    open_units = [(begun.thumbs, thumb_writer, {"batch_size": batch_size, **made})] if thumb_writer is not None else []
    for job, writers in work:
        open_units += [(array, writer, {"batch_size": job.batch_size, **made}) for array, writer in writers]
    if not gone:
        sink.commit([(writer, run) for _, writer, run in open_units], images.statuses)
    for array, writer, run in open_units if gone else ():
        carried = carry_over(array, writer, unit, gone, [begun.cache.table.keys[row] for row in gone])
        sink.commit([(writer, run)], sorted((*images.statuses, *carried), key=lambda status: status.row))


def _look_at_others(begun: Begun, config: ExtractConfig) -> tuple[int, list[str]]:
    """Images that other shares have not written yet, and whose they are; lists names of done files, opens none."""
    _, count = begun.share
    if count == 1:
        return 0, []
    units = unfinished([array.paths for array in begun.arrays], range(begun.cache.n_units))
    asked = asked_rows(begun.cache, config.splits, config.limit)  # of all shares
    owners = sorted({unit % count for unit in units if unit in asked})
    return sum(len(asked.get(unit, ())) for unit in units), [f"{owner}/{count}" for owner in owners]


def _reread(begun: Begun) -> CachedArray:
    """An array that this extraction fills, as it is now; not the thumbnails: another look may have made those."""
    job = begun.jobs[0]
    arrays = begun.cache.store(job.store.name).arrays
    return next(array for array in arrays if array.paths.name == job.arrays[0].paths.name)


def _describe(job: Job, units: Collection[int] | None) -> StoreReport:
    """The store with the bytes of some units, or of all."""
    taps = sorted({tap for array in job.arrays for tap in array.taps}, key=[s.tap for s in job.store.info.taps].index)
    n_bytes = 0
    for array in job.arrays:
        names = None if units is None else [array.paths.shard(unit, array.layout.ndim).name for unit in units]
        n_bytes += sum(array.paths.shard_sizes(names).values())
    return StoreReport(job.store.name, job.store.info.label, taps, n_bytes)
