"""The section that says where the numbers come from: versions, image sets, recipes, configurations.

In: loaded runs.   Out: HTML for `page`.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta.config import to_yaml
from loffta.reporting.markup import table, text_lines
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import NONE, count, escape
from loffta.store.cache import Cache


def provenance_section(runs: Sequence[LoadedRun]) -> str:
    versions = dict.fromkeys(_versions_in_words(run.results.get("versions", {})) for run in runs)
    images: dict[str, list[str]] = {}
    for run in runs:
        counts = run.results["images"]
        unlabelled = f", {n:,} without a label" if (n := counts.get("unlabelled", 0)) else ""
        images.setdefault(f"{counts['used']:,} tested, {counts['bad']:,} bad{unlabelled}", []).append(run.row.name)
    facts = [
        ("Versions", list(versions)),
        ("Images", [f"{counts} ({', '.join(names)})" for counts, names in images.items()]),
    ]
    if grown := [f"{run.row.name}: {said}" for run in runs if (said := run.grown)]:
        facts.append(("Grown since", grown))
    caches = {run.cache.paths.root if run.cache else run.config.cache: run.cache for run in runs}
    for path, cache in caches.items():
        facts += [("Cache", [str(path)]), *(_of_cache(cache) if cache else [("", ["no longer there"])])]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{'<br>'.join(map(escape, values))}</dd>" for k, values in facts)
    configs = "".join(
        f"<details><summary>Configuration of {escape(run.row.name)}</summary>"
        f"<pre>{text_lines(to_yaml(run.config).decode())}</pre></details>"
        for run in runs
    )
    return (
        "<h2>Provenance</h2><p>All features come from un-augmented images, each seen once by each backbone. A recipe "
        "hash stands for everything that decides a feature's bytes: the same hash means the same features.</p>"
        f"<dl>{listed}</dl>{_stores_table(runs)}{configs}"
    )


def _of_cache(cache: Cache) -> list[tuple[str, list[str]]]:
    table = cache.table
    sizes = ", ".join(f"{split} {size:,}" for split, size in table.split_sizes().items())
    classes = count(len(table.classes), "class", "classes")
    return [
        ("Image set", [f"{table.source}: {count(len(table), 'image')} ({sizes}), {classes}"]),
        ("Image set digest", [table.digest]),
        *([("Labels", [cache.labels])] if cache.labels is not None else []),
    ]


def _stores_table(runs: Sequence[LoadedRun]) -> str:
    """One line per store that a run used."""
    lines: dict[str, list[str]] = {}
    for run in runs:
        stores = {store.name: store for store in run.cache.stores()} if run.cache else {}
        for feature in run.results["features"]:
            store, described = stores.get(feature["store"]), [NONE] * 3
            if store is not None:
                recipe = store.info.recipe
                size = recipe["input"]
                described = [str(recipe["weights"]), f"{size['image_px']} px, {size['interpolation']}", recipe["dtype"]]
            label = feature.get("label", feature["store"])
            lines[feature["store"]] = [escape(label), escape(feature["recipe_hash"]), *map(escape, described)]
    columns = ("Features", "Recipe hash", "Weights digest", "Input", "Stored as")
    return table([(name, False) for name in columns], list(lines.values()))


def _versions_in_words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
