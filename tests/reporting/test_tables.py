"""Rows and the text table against the numbers that were written."""

import json
import random
import shutil
import statistics
from dataclasses import replace

import pytest
from loffta_cli.main import main
from rich.cells import cell_len

from loffta.errors import LofftaError, UsageError
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.page import render
from loffta.reporting.tables import read_good_runs, read_runs
from loffta.reporting.terminal import format_table, format_worth
from loffta.runs.run import RunPaths

ALL = {"net": ["stages.0", "stages.1", "stages.2"]}
LAST = {"net": ["stages.2"]}


def rows_of(roots):
    return [run.row for run in read_runs(roots)]


TAP_BYTES = 2 * 2 * 4 * 2  # of one tap of the tiny cache: H W D, float16


def test_a_row_holds_what_results_json_says(make_run):
    root = make_run("lin", [0.8, 0.7, 0.9], ALL, recipe={"epochs": 7, "grid": 4})
    written = json.loads((root / "results.json").read_text())
    row = read_runs([root])[0].row
    assert (row.name, row.head, row.n_taps, row.split, row.n_images) == ("lin", "linear", 3, "test", 15)
    assert (row.epochs, row.grid, row.n_seeds, row.train_seconds) == (7, 4, 3, 61.7)
    assert row.main.mean == written["metrics"]["top1"]["mean"] == pytest.approx(0.8)
    assert row.main.std == pytest.approx(statistics.stdev([0.8, 0.7, 0.9]))
    assert row.main.per_seed == (0.8, 0.7, 0.9)
    assert row.main.ci95 == (0.5, 0.9)
    assert (str(row.main), row.main.interval) == ("80.0 ± 10.0", "50.0\u201390.0")


def test_bytes_are_those_of_the_taps_used_and_of_the_images_that_have_them(make_run):
    one, both = (
        run.row
        for run in read_runs([make_run("one", [0.5], LAST), make_run("both", [0.5], ALL | {"wild": ["stages.1"]})])
    )
    assert one.image_bytes == {"net": TAP_BYTES}
    assert one.stored_bytes == TAP_BYTES * 23, "24 images, one of them bad"
    assert both.image_bytes == {"net": 3 * TAP_BYTES, "wild [random:0 weights]": TAP_BYTES}
    assert both.bytes_per_image == 4 * TAP_BYTES


def test_features_in_words_name_random_weights(make_run):
    row = read_runs([make_run("both", [0.5], ALL | {"wild": ["stages.0", "stages.2"]})])[0].row
    assert row.features == "net stages.0\u20132 + wild [random:0 weights] stages.0, stages.2"


def test_a_scoring_run_follows_its_run_once(make_run):
    other, run, scoring = (make_run(name, [0.5], ALL) for name in ("other", "deep/sel/scoring", "deep/sel"))
    assert [r.row.name for r in read_runs([scoring, other])] == ["deep/sel", "deep/sel/scoring", "other"]
    assert [r.row.name for r in read_runs([scoring, run, scoring])] == ["sel", "sel/scoring"]


def test_a_run_without_its_cache_is_still_reported(make_run, cache):
    root = make_run("lin", [0.5], ALL)
    shutil.rmtree(cache.paths.root)
    row = read_runs([root])[0].row
    assert row.bytes_per_image is None
    assert row.stored_bytes is None
    assert row.main.mean == 0.5


def test_missing_runs_and_results_say_what_to_do(make_run, tmp_path):
    root = make_run("lin", [0.5], ALL)
    RunPaths(root).results("test").unlink()
    with pytest.raises(LofftaError, match=r"(?s)no results here yet.*remedy: run its `loffta train` again"):
        read_runs([root])
    with pytest.raises(LofftaError, match=r"(?s)no run here.*loffta train"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="name one or more runs"):
        read_runs([])


def test_runs_that_cannot_be_shown_are_told_apart(make_run):
    done, training, scoring = (make_run(name, [0.5], ALL) for name in ("done", "training", "s/scoring"))
    RunPaths(training).results("test").unlink()
    chosen = make_run("val", [0.5], ALL, config={"test_on": "val"})
    RunPaths(chosen).results("test").rename(RunPaths(chosen).results("val"))
    runs, left_out = read_good_runs([training, done, scoring.parent, chosen])
    assert [run.paths.root for run in runs] == [done, scoring, chosen]
    assert [bad.why for bad in left_out] == [
        f"{training}: there are no results here yet ({training}/results.json)",
        f"{scoring.parent}: its backbones are scored, but there are no results yet",
    ]


def test_one_bad_run_does_not_end_a_report(make_run, tmp_path, capsys):
    done, training, torn = (make_run(name, [0.5], ALL) for name in ("done", "training", "torn"))
    RunPaths(training).results("test").unlink()
    RunPaths(torn).results("test").write_text("{")
    words = ["report", str(training), str(torn), "--out", str(tmp_path / "report.html")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: there are no results here yet\n")
    assert "remedy: run its `loffta train` again until it is done\n" in err
    assert not (tmp_path / "report.html").exists()
    assert main([*words, str(done), "--json"]) == 0
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith(f"left out: {training}: there are no results here yet")
    assert second.startswith(f"left out: {torn}: ")
    told = json.loads(out.splitlines()[-1])
    assert (told["runs"], told["left_out"]) == (1, [str(training), str(torn)])
    assert (tmp_path / "report.html").exists()


MUTATIONS = (None, True, -1, 1e308, "x", [], {}, [[]], {"a": {}}, [None], "\ud800", float("nan"), 10**400)


def places(value, path=()):
    """Every place in a document, the leaves and what holds them."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def test_results_of_another_kind_are_left_out_or_shown(make_run, scores, tmp_path):
    """100 mutations of a value or a key of everything that reports read: no traceback, and the good run is shown."""
    layers = [{"backbone": "net", "tap": "stages.0", "kind": "cls", "mean": 0.5, "std": None, "per_seed": [0.5]}]
    extra = {
        "confusion": {"classes": ["a", "b"], "counts": [[5, 3], [0, 7]]},
        "confused_pairs": [{"label": "a", "predicted": "b", "count": 3, "of": 8}],
        "per_class": [{"class": "a", "images": 8, "ap": 0.5}],
        "notes": {"kappa": "left out"},
        "training": {"epochs": 3},
    }
    extra |= {"attention": layers, "kept": layers}
    both = ALL | {"wild": ["stages.0", "stages.1", "stages.2"]}
    bad = make_run("bad", [0.8], both, head="combo", relevance=scores(), more={"f1": further(0.5)}, **extra)
    path = RunPaths(bad).results("test")
    whole, good = json.loads(path.read_text()), make_run("good", [0.5], LAST)
    everywhere, rng = list(places(whole))[1:], random.Random(0)
    n_left_out = 0
    for i in range(100):
        document, place = json.loads(json.dumps(whole)), rng.choice(everywhere)
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        if i % 5:
            holder[place[-1]] = rng.choice(MUTATIONS)
        else:
            del holder[place[-1]]
        path.write_text(json.dumps(document))
        runs, left_out = read_good_runs([bad, good])
        render(runs, Comparisons(runs))
        format_table([run.row for run in runs])
        format_worth(runs, Comparisons(runs))
        assert runs[-1].row.name == "good"
        n_left_out += len(left_out)
    assert 30 < n_left_out < 100


def test_a_folder_of_runs_hints_at_its_subfolders(make_run):
    parent = make_run("lin", [0.5], ALL).parent
    for read in (read_runs, read_good_runs):
        with pytest.raises(UsageError, match=rf"(?s)there is no run here, but .*`loffta report {parent}/\*`"):
            read([parent])


def test_results_of_another_make_are_one_error_not_a_traceback(make_run):
    root = make_run("lin", [0.5], ALL)
    path = RunPaths(root).results("test")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {}}))
    with pytest.raises(LofftaError, match=r"(?s)cannot mean: metrics.top1: it is missing.*loffta evaluate RUN"):
        read_runs([root])


def test_the_text_table_is_aligned_plain_and_fits(make_run):
    roots = [make_run("lin", [0.8, 0.7, 0.9], ALL | {"wild": ["stages.0"]}), make_run("combo" * 20, [0.875], LAST)]
    rows = rows_of(roots)
    text = format_table([replace(rows[0], name="bad\x1b[31m"), rows[1]])
    lines = text.splitlines()
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[0].split()) == "run head top-1 % 95 % CI seeds train read/image"
    assert lines[2].index("80.0 ± 10.0") + 11 == lines[4].index("87.5") + 4 == lines[0].index("top-1 %") + 7
    assert " ".join(lines[2].split()[1:]) == "linear 80.0 ± 10.0 50.0\u201390.0 3 1 min 2 s 128 B"
    assert lines[3] == "    net stages.0\u20132 + wild [random:0 weights] stages.0 (4 taps, 12 epochs)"


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_wrap_and_no_column_is_lost(make_run, width):
    names = ["attentive-a", "attentive-b", "combo" * 12]
    recipe = {"epochs": 7, "grid": 14}
    rows = rows_of([make_run(name, [0.8, 0.7, 0.9], ALL, head="smp", recipe=recipe) for name in names])
    lines = format_table(rows, width).splitlines()
    assert max(map(len, lines)) == width
    end = lines[1].index(" ")
    body = [line for line in lines[2:] if line != "    net stages.0\u20132 (3 taps, 7 epochs, grid 14)"]
    assert "".join(line[:end].strip() for line in body) == "".join(names)
    until = lines[1].index(" ", end + 2)
    assert " ".join(filter(None, (line[end:until].strip() for line in body))) == " ".join([rows[0].head] * 3)
    assert [line.endswith("  96\xa0B") for line in body].count(True) == 3
    wide = format_table([replace(rows[0], name="\u5c64" * 39)], width)
    assert wide.count("\u5c64") == 39
    assert max(map(cell_len, wide.splitlines())) <= width


def test_figures_are_wider_before_they_are_cut(make_run):
    (row,) = rows_of([make_run("attentive-a", [0.8], ALL, head="smp")])
    lines = format_table([row], width=60).splitlines()
    assert lines[0].endswith("read/image")
    assert [line.split()[:2] for line in lines[2:5]] == [["attentiv", "smp"], ["e-a", "approxim"], ["ation)"]]


def further(mean):
    return {"mean": mean, "std": None, "per_seed": [mean], "ci95": [mean - 0.1, mean + 0.1]}


def test_further_metrics_stand_below_a_run(make_run):
    more = {"kappa": further(0.25), "roc_auc": further(0.75)}
    rows = rows_of([make_run("lin", [0.8], LAST, more=more), make_run("old", [0.8], LAST)])
    assert list(rows[0].further) == ["kappa", "roc_auc"]
    lines = format_table(rows).splitlines()
    assert lines[3:5] == ["    net stages.2 (1 tap, 12 epochs)", "    quadratic kappa 25.0 %, ROC AUC 75.0 %"]
    assert [line.split()[0] for line in lines[5:]] == ["old", "net"]


def test_runs_of_other_tasks_are_told_apart(make_run):
    several = make_run("voc", [0.4], LAST, task="multi-label", metric="map", more={"roc_auc": further(0.75)})
    row = rows_of([several])[0]
    assert (row.headline, row.main.mean) == ("map", 0.4)
    assert format_table([row]).splitlines()[0].split()[2:4] == ["mean", "AP"]
    lines = format_table(rows_of([several, make_run("lin", [0.8], LAST)])).splitlines()
    assert "  score  " in lines[0]
    assert [line.strip() for line in lines if "score:" in line] == ["score: mean AP, ROC AUC 75.0 %", "score: top-1"]
