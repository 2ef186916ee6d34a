"""Rows and the text table against the numbers that were written."""

import json
import shutil
import statistics
from dataclasses import replace

import pytest
from loffta_cli.main import main
from rich.cells import cell_len

from loffta.errors import LofftaError, UsageError
from loffta.report.tables import format_table, part_runs, read_rows, read_runs
from loffta.runs import RunPaths

ALL = {"net": ["stages.0", "stages.1", "stages.2"]}
LAST = {"net": ["stages.2"]}
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
    assert str(row.main) == "80.00 ± 10.00"


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


def test_unfinished_runs_are_told_apart(make_run):
    done, training, scoring = (make_run(name, [0.5], ALL) for name in ("done", "training", "s/scoring"))
    RunPaths(training).results("test").unlink()
    chosen = make_run("val", [0.5], ALL, config={"test_on": "val"})
    RunPaths(chosen).results("test").rename(RunPaths(chosen).results("val"))
    assert part_runs([training, done, scoring.parent, chosen]) == ([done, chosen], [training, scoring.parent])


def test_the_command_leaves_unfinished_runs_out(make_run, tmp_path, capsys):
    done, training = make_run("done", [0.5], ALL), make_run("training", [0.5], ALL)
    RunPaths(training).results("test").unlink()
    words = ["report", str(training), "--out", str(tmp_path / "report.html")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: there are no results here yet\n")
    assert "remedy: run its `loffta train` again until it is done\n" in err
    assert not (tmp_path / "report.html").exists()
    assert main([*words, str(done), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f"left out: {training} has no results yet\n"
    assert json.loads(out.splitlines()[-1])["runs"] == 1
    assert (tmp_path / "report.html").exists()


def test_a_folder_of_runs_hints_at_its_subfolders(make_run):
    parent = make_run("lin", [0.5], ALL).parent
    for read in (read_runs, part_runs):
        with pytest.raises(UsageError, match=rf"(?s)there is no run here, but .*`loffta report {parent}/\*`"):
            read([parent])


def test_results_of_another_make_are_one_error_not_a_traceback(make_run):
    root = make_run("lin", [0.5], ALL)
    RunPaths(root).results("test").write_text('{"head": "linear", "metrics": {}, "split": "test"}')
    with pytest.raises(LofftaError, match=r"(?s)KeyError: 'top1'.*loffta evaluate RUN"):
        read_runs([root])


def test_the_text_table_is_aligned_plain_and_fits(make_run):
    roots = [make_run("lin", [0.8, 0.7, 0.9], ALL | {"wild": ["stages.0"]}), make_run("combo" * 20, [0.875], LAST)]
    rows = read_rows(roots)
    text = format_table([replace(rows[0], name="bad\x1b[31m"), rows[1]], width=100)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 100
    assert " ".join(lines[0].split()) == "run head taps top-1 % 95 % CI seeds epochs grid train read/image"
    assert lines[2].index("80.00 ± 10.00") + 13 == lines[4].index("87.50") + 5 == lines[0].index("top-1 %") + 7
    assert " ".join(lines[2].split()[1:]) == "linear 4 80.00 ± 10.00 50.0\u201390.0 3 12 \u2013 1 min 2 s 128 B"
    assert lines[3] == "    net stages.0\u20132 + wild [random:0 weights] stages.0"


def test_long_names_wrap_and_no_column_is_lost(make_run):
    names = ["attentive-a", "attentive-b", "combo" * 5]
    recipe = {"epochs": 7, "grid": 14}
    rows = read_rows([make_run(name, [0.8, 0.7, 0.9], ALL, head="smp", recipe=recipe) for name in names])
    lines = format_table(rows).splitlines()
    assert max(map(len, lines)) == 100
    end = lines[1].index(" ")
    body = [line for line in lines[2:] if line != "    net stages.0\u20132"]
    assert "".join(line[:end].strip() for line in body) == "".join(names)
    assert " ".join(filter(None, (line[end : end + 17].strip() for line in body))) == " ".join([rows[0].head] * 3)
    assert [line.endswith("  96\xa0B") for line in body].count(True) == 3
    wide = format_table([replace(rows[0], name="\u5c64" * 9)])
    assert wide.count("\u5c64") == 9
    assert max(map(cell_len, wide.splitlines())) <= 100


def test_figures_are_wider_before_they_are_cut(make_run):
    (row,) = read_rows([make_run("attentive-a", [0.8], ALL, head="smp")])
    lines = format_table([row], width=70).splitlines()
    assert lines[0].endswith("read/image")
    assert [line.split()[:2] for line in lines[2:5]] == [["attentiv", "smp"], ["e-a", "approxim"], ["ation)"]]


def further(mean):
    return {"mean": mean, "std": None, "per_seed": [mean], "ci95": [mean - 0.1, mean + 0.1]}


def test_further_metrics_stand_below_a_run(make_run):
    more = {"kappa": further(0.25), "roc_auc": further(0.75)}
    rows = read_rows([make_run("lin", [0.8], LAST, more=more), make_run("old", [0.8], LAST)])
    assert list(rows[0].further) == ["kappa", "roc_auc"]
    lines = format_table(rows).splitlines()
    assert lines[3:5] == ["    net stages.2", "    quadratic kappa 25.00, ROC AUC 75.00"]
    assert [line.split()[0] for line in lines[5:]] == ["old", "net"]


def test_runs_of_other_tasks_are_told_apart(make_run):
    several = make_run("voc", [0.4], LAST, task="multi-label", metric="map", more={"roc_auc": further(0.75)})
    row = read_rows([several])[0]
    assert (row.headline, row.main.mean) == ("map", 0.4)
    assert format_table([row]).splitlines()[0].split()[3:5] == ["mean", "AP"]
    lines = format_table(read_rows([several, make_run("lin", [0.8], LAST)])).splitlines()
    assert "score %" in lines[0]
    assert [line.strip() for line in lines if "score:" in line] == ["score: mean AP; ROC AUC 75.00", "score: top-1"]
