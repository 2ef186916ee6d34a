"""The page as a parser reads it: its numbers, its escaping, and that nothing leaves it."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from loffta.errors import UsageError
from loffta.reporting.page import write_report
from loffta.reporting.tables import StageCost, read_runs
from loffta.runs.run import read_predictions, write_predictions

ALL = {"net": ["stages.0", "stages.1", "stages.2"]}
BOTH = ALL | {"wild": ["stages.0", "stages.1", "stages.2"]}
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """Tags with attributes, table rows, text by tag; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data if "small" not in self.open else f"|{data}"

    def row(self, start):
        return next(row for row in self.rows if row and row[0].split("|")[0] == start)


@pytest.fixture
def report(tmp_path):
    def make(*roots, **options):
        out = tmp_path / "out" / "report.html"
        write_report(read_runs(roots), out, **options)
        return out.read_text(encoding="utf-8")

    return make


def test_the_table_and_the_figure_show_what_results_json_says(make_run, report):
    make = {"ci95": (0.7, 0.95), "recipe": {"epochs": 7, "grid": 4}}
    root = make_run("combo", [0.8, 0.9], BOTH, head="combo", **make)
    other = make_run("lin", [0.6], ALL, ci95=(0.4, 0.7))
    text = report(other, root)
    page = Page(text)
    top1 = json.loads((root / "results.json").read_text())["metrics"]["top1"]
    shown = f"{100 * top1['mean']:.1f} ± {100 * top1['std']:.1f}|70.0\u201395.0"
    cells = page.row("combo")
    assert cells[1:] == [
        "combo",
        "6",
        shown,
        "not known",
        "\u2013",
        "2",
        "7",
        "4",
        "1\xa0min\xa02\xa0s",
        "192\xa0B|of 4.4\xa0kB stored",
    ]
    widths = [float(a["width"]) for tag, a in page.tags if tag == "rect" and a.get("class") == "bar"]
    assert widths[1] / widths[0] == pytest.approx(0.6 / 0.85, abs=1e-3), "best first, lengths in proportion"
    assert "85.0 %" in page.text
    assert "60.0 %" in page.text
    assert {"combo on 6 taps of 2 backbones, 1 with random", "weights"} <= {*page.text}
    assert "linear on net stages.0\u20132" in page.text


def test_the_approximation_of_smp_is_called_one(make_run, report, scores):
    page = Page(report(make_run("probing", [0.8], BOTH, head="smp", relevance=scores())))
    assert page.row("probing")[1] == "smp (our approximation)"
    assert "under a group lasso over layers." in "".join(page.text)
    assert "ComBo's group penalty" not in "".join(page.text)


def test_nothing_leaves_the_page(make_run, report, scores):
    root = make_run("combo", [0.8], BOTH, head="combo", relevance=scores())
    text = report(root, stages=[StageCost("extract", "loffta extract x", 3, 4)])
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a"} & {tag for tag, _ in page.tags}
    links = [
        value for _, a in page.tags for name, value in a.items() if name in ("src", "href", "xlink:href", "srcset")
    ]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|@import", text)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{a['id']}" for tag, a in page.tags if tag == "pattern"}
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique(make_run, report, scores):
    roots = [make_run(name, [0.8], BOTH, head="combo", relevance=scores()) for name in ("one", "two")]
    ids = [a["id"] for _, a in Page(report(*roots)).tags if "id" in a]
    assert len(ids) == len(set(ids)) == 5


def test_the_same_bars_are_not_drawn_twice(make_run, report, scores):
    """One chart of the scores, wide intervals or narrow; no bars per layer where every backbone has one."""
    one_layer = scores()
    one_layer["taps"] = [entry for entry in one_layer["taps"] if entry["tap"] == "stages.0"]
    for ci95, relevance, n_charts in (((0.3, 0.9), scores(), 3), ((0.7, 0.9), scores(), 3), ((0.7, 0.9), one_layer, 2)):
        name = f"{ci95[0]}-{len(relevance['taps'])}"
        page = Page(report(make_run(name, [0.8], BOTH, head="combo", ci95=ci95, relevance=relevance)))
        assert [tag for tag, _ in page.tags].count("svg") == n_charts
        assert ("The axis does not start at zero, but at 70 %" in page.text) == (ci95 == (0.7, 0.9))


def test_hostile_keys_classes_names_and_commands_are_text(make_run, report, scores):
    root = make_run("<img src=x onerror=alert(1)>", [0.8], BOTH, head="combo", relevance=scores())
    text = report(root, stages=[StageCost(HOSTILE, f'"{HOSTILE}', 1.0)])
    page = Page(text)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert not [a for _, a in page.tags for name in a if name.startswith("on")]
    images = [a for tag, a in page.tags if tag == "img"]
    assert all(HOSTILE in a["alt"] and "\n" not in a["alt"] for a in images)
    assert page.row(HOSTILE)[1] == f'"{HOSTILE}'
    assert any(f"folder:{HOSTILE}" in part for part in page.text)


def test_pictures_are_the_cached_thumbnails_of_right_and_wrong_images(make_run, report):
    page = Page(report(make_run("lin", [0.8, 0.7], ALL)))
    tiles = [(tag, a) for tag, a in page.tags if tag == "img" or a.get("class", "").startswith("tile ")]
    states = [a["class"] for tag, a in tiles if tag == "li"]
    assert states == ["tile wrong"] * 3 + ["tile right"] * 12, "rows 10, 15 and 20 of 8 to 22 are wrong"
    rows = [int(re.search(r"(\d+)\.png", a["alt"])[1]) for tag, a in tiles if tag == "img"]
    assert rows[:3] == [20, 15, 10], "the most confident mistake first"
    for row, (_, a) in zip(rows, [t for t in tiles if t[0] == "img"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))))
        assert pixels.shape == (4, 4, 3)
        assert (pixels == 10 * row).all()
    assert "3 mistakes on 15 images" in "".join(page.text)


def test_every_run_has_pictures_whatever_its_split(make_run, report):
    """The split `holdout` is known to the run alone; images are found by their keys."""
    best = make_run(
        "best", [], ALL, right=[[True] * 15], config={"holdout": 0.5, "test_on": "holdout"}, split="holdout"
    )
    for old in ("results.json", "predictions.parquet"):
        path = best / old
        path.rename(path.with_stem(f"{path.stem}-holdout"))
    text = report(make_run("other", [0.5], ALL), best)
    page = Page(text)
    assert "No pictures" not in text
    states = [a["class"] for tag, a in page.tags if tag == "li" and a.get("class", "").startswith("tile ")]
    assert states == ["tile right"] * 15 + ["tile wrong"] * 3 + ["tile right"] * 5, (
        "the best run's, then 8 of the other"
    )
    assert "0 mistakes on 15 images of split holdout" in "".join(page.text)
    assert "Test images: other" in page.text


def test_a_run_without_a_cache_says_so(make_run, report, cache):
    root = make_run("online", [0.5], ALL, online={"source": "folder:/data/new"})
    shutil.rmtree(cache.paths.root)
    assert "No pictures: it was tested without a cache (folder:/data/new)." in report(root)


def test_what_runs_are_behind_the_best(make_run, report):
    """Of 15 images 3 are another run's alone, all of one run's mistakes; a second is as good but for one."""
    rights = {"best": 15, "close": 14, "far": 6}
    roots = [make_run(name, [], ALL, right=[np.arange(15) < n]) for name, n in rights.items()]
    page = Page(report(*roots))
    minus = "\N{MINUS SIGN}"
    assert page.row("best")[4:6] == ["1\u20132|tied with the best", "\u2013"]
    assert page.row("close")[4:6] == ["1\u20132|tied with the best", f"{minus}6.7|{minus}20.0 to 0.0|open"]
    assert page.row("far")[4] == "3"
    assert page.row("far")[5].startswith(f"{minus}60.0|{minus}8")
    assert "chosen by its score on these very images" in "".join(page.text)


def test_predictions_that_are_not_the_results_are_not_shown(make_run, report):
    root = make_run("lin", [0.8], ALL)
    results = json.loads((root / "results.json").read_text()) | {"n": 14}
    (root / "results.json").write_text(json.dumps(results))
    text = report(root)
    assert "No pictures: the predictions do not go with the results (ValueError)" in text
    assert "<img" not in text


@pytest.mark.parametrize(("sizes", "expected"), [((12, 12), ["6.00", "3.00"]), ((12, 24), ["3.00", "1.50"])])
def test_relevance_shows_the_raw_score_for_equal_groups_else_the_size_aware_one(
    make_run, report, scores, sizes, expected
):
    page = Page(report(make_run("combo", [0.8], BOTH, head="combo", relevance=scores(*sizes))))
    text = "".join(page.text)
    assert ("the paper's raw score is shown" in text) == (sizes == (12, 12))
    assert ("size-aware score is shown" in text) == (sizes != (12, 12))
    charts = text[text.index("Per backbone") : text.index("Size-aware")]
    assert [charts.index(score) for score in expected] == sorted(charts.index(score) for score in expected)
    assert page.row("net")[1:4] == ["3.00", "6.00", str(sizes[0])]
    bars = [a for tag, a in page.tags if tag == "rect" and a.get("class") == "bar"]  # the accuracy has points
    widths = [float(a["width"]) for a in bars]
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=1e-3)
    assert [widths[i] / widths[2] for i in range(2, 8)] == pytest.approx(
        [1, 1 / 2, 1 / 3, 1 / 2, 1 / 4, 1 / 6], abs=1e-3
    )
    assert ["url(#" in a["style"] for a in bars] == [False, True] + [False] * 3 + [True] * 3
    assert "random control" in text


def test_stage_costs_are_listed_and_summed(make_run, report):
    stages = [StageCost("extract", "loffta extract x", 100.0, 2_500_000), StageCost("train", "loffta train x", 30)]
    page = Page(report(make_run("lin", [0.8], ALL), stages=stages))
    assert page.row("extract") == ["extract", "loffta extract x", "1\xa0min\xa040\xa0s", "2.5\xa0MB"]
    assert page.row("train")[2:] == ["30.0\xa0s", "\u2013"]
    assert "2\xa0min\xa010\xa0s in all." in page.text


def test_provenance_names_versions_hashes_counts_and_configuration(make_run, report, cache):
    page = Page(report(make_run("lin", [0.8], ALL)))
    text = "".join(page.text)
    store = next(store for store in cache.stores() if store.info.recipe["backbone"] == "net")
    assert page.row("net")[1:] == [store.hash, "00ff", "8 px, bicubic", "float16"]
    for part in (
        "torch 9.9.9",
        "15 tested, 1 bad",
        "un-augmented",
        cache.table.digest,
        "train 8, test 16",
        "seeds: 1\n",
    ):
        assert part in text


def test_testing_on_trained_images_is_said(make_run, report):
    assert "no head was trained on" in report(make_run("lin", [0.8], ALL))
    assert "trained on, too: both." in report(make_run("both", [0.8], ALL, train_on="train+test"))


def test_the_same_runs_give_the_same_bytes(make_run, report):
    root = make_run("lin", [0.8], ALL)
    assert report(root) == report(root)


def test_a_folder_is_no_report(make_run, tmp_path, monkeypatch):
    root = make_run("lin", [0.8], ALL)
    monkeypatch.setattr("loffta.reporting.page.render", lambda *_: pytest.fail("drawn for nothing"))
    named = rf"where:  {tmp_path}\n  remedy: name {tmp_path}/report.html"
    with pytest.raises(UsageError, match=rf"(?s)this is a folder.*{named}"):
        write_report(read_runs([root]), tmp_path)


def measured(mean, per_seed=(0.5,)):
    return {"mean": mean, "std": None, "per_seed": list(per_seed), "ci95": [mean - 0.05, mean + 0.05]}


def test_further_metrics_have_a_table_and_notes(make_run, report):
    more = {"kappa": measured(0.25), "log_loss": measured(0.5)}
    notes = {"log_loss": f"1 of 2 classes does not occur ({HOSTILE})"}
    roots = make_run("new", [0.8], ALL, more=more, notes=notes), make_run("old", [0.7], ALL)
    text = report(*roots)
    page = Page(text)
    head, new, old = further_of(page)
    assert head == ["Run", "Quadratic kappa %", "Log-loss"]
    assert new == ["new", "25.0|20.0\u201330.0", "0.500|0.450\u20130.550"]
    assert old == ["old", "\u2013", "\u2013"]
    assert "<script" not in text
    assert f"Log-loss: 1 of 2 classes does not occur ({HOSTILE}) (new)." in page.text


def further_of(page):
    start = next(i for i, row in enumerate(page.rows) if row[1:2] == ["Quadratic kappa %"])
    return page.rows[start : start + 3]


def test_results_of_before_have_no_further_sections(make_run, report):
    text = report(make_run("old", [0.8], ALL))
    assert not {"Further metrics", "Confusions", "Classes:"} & set(
        re.findall(r"Further metrics|Confusions|Classes:", text)
    )
    assert "Top-1 accuracy" in text
    assert not re.search("Attention over layers|Augmented features|Relevance", text)


def test_the_best_augmented_run_has_pictures_of_it(make_run, report):
    plain = make_run("plain", [0.9], ALL, head="combo")
    mean = make_run("mean", [0.8], ALL, config={"augment": "trivial"})  # the linear head is fed no grid
    best, second = (
        make_run(name, [score], ALL, head="combo", config={"augment": {"preset": "loff-ta", "hflip_p": hflip}})
        for name, score, hflip in (("best", 0.7, 0.125), ("second", 0.6, 0.25))
    )
    text = report(plain, mean, second, best)
    assert "Of best, the best run that was trained like this." in text
    assert "hflip_p 0.125" in text
    assert Page(text).text.count("Augmented features") == 1
    assert "Augmented features" not in report(plain, mean)


def test_augmented_features_that_are_gone_are_no_reason_to_fail(make_run, report, cache):
    root = make_run("best", [0.7], ALL, head="combo", config={"augment": "trivial"})
    store = next(store for store in cache.stores() if store.info.recipe["backbone"] == "net")
    shutil.rmtree(cache.paths.store(store.name))
    assert re.search(r"<h2>Augmented features</h2><p class=\"note\">No pictures: ", report(root))


def test_confusion_matrix(make_run, report):
    confusion = {"classes": [HOSTILE, "b & c"], "counts": [[30, 10], [0, 20]]}
    text = report(make_run("lin", [0.8, 0.8], ALL, confusion=confusion))
    page = Page(text)
    cells = [a for tag, a in page.tags if tag == "rect" and a.get("class") == "cell"]
    assert [float(re.search(r"fill-opacity:([\d.]+)", a["style"])[1]) for a in cells] == pytest.approx(
        [0.12 + 0.88 * share for share in (0.75, 0.25, 1.0)], abs=1e-3
    ), "shares of the row; no image, no cell"
    assert ["--wrong" in a["style"] for a in cells] == [False, True, False]
    assert f"{HOSTILE} \u2192 b & c: 10 (25.0 %)" in page.text
    assert "counts of 2 seeds together" in "".join(page.text)
    assert "<script" not in text


def test_pairs_of_many_classes(make_run, report):
    pairs = [{"label": HOSTILE, "predicted": "cat", "count": 3, "of": 12}]
    text = report(make_run("lin", [0.8], ALL, confused_pairs=pairs))
    assert Page(text).row(HOSTILE) == [HOSTILE, "cat", "3", "25.0"]
    assert "one seed" in text


def test_precision_of_each_class(make_run, report):
    classes = [{"class": f"c{i}", "images": i, "ap": None if i == 3 else i / 100} for i in range(60)]
    root = make_run("voc", [0.4], ALL, task="multi-label", metric="map", per_class=classes)
    text = report(root, make_run("lin", [0.9], ALL))
    page = Page(text)
    assert page.row("c2") == ["c2", "2", "2.0"]
    assert page.row("c50")[2] == "50.0"
    assert not [row for row in page.rows if row[:1] in (["c51"], ["c3"])], "the 50 lowest"
    assert "the 50 lowest of 60 classes" in text
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:2] == ["Top-1 accuracy", "Mean average precision"]
    assert page.row("voc")[3].startswith("40.0")


def test_pictures_of_several_classes(make_run, report, cache):
    root = make_run("voc", [0.4], ALL, task="multi-label", metric="map")
    path = root / "predictions.parquet"
    columns = read_predictions(path)
    columns["label"] = [[0, 1] if row % 2 else [] for row in columns["row"]]
    columns["predicted"] = [[0, 1] if row % 2 and row != 9 else [1] if row == 10 else [] for row in columns["row"]]
    write_predictions(path, columns)
    text = report(root)
    page = Page(text)
    assert "2 mistakes on 15 images of split test, where one class too many or too few is a mistake" in "".join(
        page.text
    )
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert [re.search(r"(\d+)\.png", alt)[1] for alt in alts[:2]] == ["10", "9"]
    assert "truth none" in page.text
    assert f"truth {HOSTILE}, b & c" in page.text
