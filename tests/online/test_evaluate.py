"""`evaluate --online` against the cached evaluation of the same images, with the cache gone."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from loffta_cli.main import main

from loffta.errors import LofftaError, Stopped, TooManyBadImages, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.machine.process import StopFlag
from loffta.online.evaluate import evaluate_online
from loffta.runs.run import RunPaths
from loffta.store.table import ImageTable
from tests.fakes import PngSource
from tests.online.runs import CPU, loader, make_fake_cache, make_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs of two seeds on the caches of two backbones, float16 and int8; the caches are gone."""
    root = tmp_path_factory.mktemp("runs")
    for dtype in ("float16", "int8"):
        names = ("fake", "fake1")
        cache = make_fake_cache(root / dtype, names=names, dtype=dtype, kinds=("grid",), broken={8: b""})
        make_run(cache, root / f"linear-{dtype}", lr=0.1)
        combo = {"width": 8, "depth": 1, "relevance_weight": 0.01, "lr": 0.01}
        make_run(cache, root / f"combo-{dtype}", head="combo", features=("fake:blocks.0,stages.2", "fake1"), **combo)
        shutil.rmtree(root / dtype)
    return root


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished / "linear-float16", tmp_path / "run")


def online(roots, source=None, split="test", **options):
    source = source or PngSource(20, {8: b""})
    options = {"batch_size": 8, "device": CPU, "max_bad_frac": 0.5} | options
    return evaluate_online(roots, source, split, options.pop("load", loader()), **options)


def files_of(root):
    predictions = pq.read_table(RunPaths(root).predictions("test")).to_pydict()
    return json.loads(RunPaths(root).results("test").read_text()), predictions


class Renamed:
    """The same pictures with another listing."""

    def __init__(self, change, source=None):
        self._source, self._change = source or PngSource(20), change
        self.read = self._source.read

    def listing(self):
        fields = vars(self._source.listing())
        return ImageTable(**{**fields, **self._change(fields)})


@pytest.mark.parametrize("name", ["linear-float16", "linear-int8", "combo-float16", "combo-int8"])
def test_it_equals_the_cached_evaluation(finished, tmp_path, name):
    root = shutil.copytree(finished / name, tmp_path / "run")
    cached, expected = files_of(root)
    (results,) = online([root])
    again, found = files_of(root)
    assert again == json.loads(json.dumps(results))
    assert results["metrics"] == cached["metrics"]
    for key in ("task", "head", "split", "n", "features", "images", "recipe", "train_seconds"):
        assert results[key] == cached[key], key
    assert cached["images"] == {"used": 4, "bad": 1}
    assert results["online"]["source"] == "fake:png"
    confidence = found.pop("confidence"), expected.pop("confidence")
    assert found == expected
    np.testing.assert_allclose(*confidence, atol=1e-6)
    if name.startswith("combo"):
        assert results["relevance"] == cached["relevance"]


def test_what_heads_tell_is_that_of_the_cached_evaluation(tmp_path):
    cache = make_fake_cache(tmp_path / "cache", kinds=("grid", "prefix"), broken={8: b""})
    features = ("fake:blocks.0,blocks.1",)
    fusion = make_run(cache, tmp_path / "fusion", head="fusion", features=features, min_steps=4)
    head2toe = make_run(cache, tmp_path / "head2toe", head="head2toe", features=features, pooled_size=8, min_steps=4)
    cached = [files_of(root)[0] for root in (fusion, head2toe)]
    found = online([fusion, head2toe])
    for entry, expected in zip(found[0]["attention"], cached[0]["attention"], strict=True):
        assert entry["per_seed"] == pytest.approx(expected.pop("per_seed"), abs=1e-6)
        assert {key: entry[key] for key in ("backbone", "tap", "kind")} == {
            key: expected[key] for key in ("backbone", "tap", "kind")
        }
    assert len(found[0]["attention"]) == 4
    assert found[1]["kept"] == cached[1]["kept"]


def test_several_runs_share_one_pass(finished, tmp_path):
    names = ["linear-float16", "combo-float16", "linear-int8"]
    roots = [shutil.copytree(finished / name, tmp_path / name) for name in names]
    source, loaded = PngSource(20), []
    together = online(roots, source, load=loader(loaded))
    assert set(source.reads.values()) == {1}
    assert sorted(loaded) == ["fake", "fake", "fake1", "fake1"]  # float16 and int8 are two stores
    alone = [online([root], PngSource(20))[0] for root in roots]
    assert [r["metrics"] for r in together] == [r["metrics"] for r in alone]
    assert [r["head"] for r in together] == ["linear", "combo", "linear"]


def test_what_a_search_chose_stays_in_the_results(tmp_path, monkeypatch):
    cache = make_fake_cache(tmp_path / "cache", kinds=("mean",))
    grid = {"search_lr": (0.1, 1e-9), "search_weight_decay": (0.0,)}
    root = make_run(cache, tmp_path / "run", features=("fake:blocks.0",), seeds=1, search=True, lr=1e-3, **grid)
    cached, _ = files_of(root)
    (results,) = online([root], PngSource(20))
    assert (results["search"], results["recipe"]) == (cached["search"], cached["recipe"])
    assert results["recipe"]["lr"] == results["search"]["chosen"]["lr"] != 1e-3


def test_classes_are_matched_by_name(run):
    """Another order of classes, and one more that no image of the split has."""
    (plain,) = online([run], PngSource(20))
    (moved,) = online(
        [run],
        Renamed(lambda f: {"classes": ("c", "a", "unused", "b"), "labels": np.array([1, 3, 0])[f["labels"]]}),
    )
    assert moved["metrics"] == plain["metrics"]


@pytest.mark.parametrize(
    ("change", "split", "error", "words"),
    [
        (
            lambda f: {"classes": ("a", "bird", "c")},
            "test",
            LofftaError,
            r"images are of classes .*: bird\n.*knows classes a, b, c",
        ),
        (lambda f: {}, "tset", UsageError, r"unknown split 'tset'(.|\n)*did you mean test"),
        (
            lambda f: {"labels": f["labels"] * 0 - 1},
            "test",
            LofftaError,
            r"no image of split 'test' has a label \(5 have none\)",
        ),
        (lambda f: {"values": np.ones(20)}, "test", LofftaError, "labels of this image set are regression"),
    ],
)
def test_image_sets_that_do_not_fit(run, change, split, error, words):
    before = RunPaths(run).results("test").read_bytes()
    with pytest.raises(error, match=words):
        online([run], Renamed(change), split)
    assert RunPaths(run).results("test").read_bytes() == before


def test_bad_images_are_counted_and_may_be_too_many(run):
    broken = {0: b"", 4: b"no image"}
    (results,) = online([run], PngSource(20, broken))
    assert results["images"] == {"used": 3, "bad": 2}
    with pytest.raises(TooManyBadImages, match=r"2 of 5 images cannot be used; the first: 0000.png: empty file"):
        online([run], PngSource(20, broken | {8: PngSource(20).encoded(8)}), max_bad_frac=0.3)
    assert files_of(run)[0]["n"] == 3  # they were written all the same
    with pytest.raises(TooManyBadImages, match="5 of 5 images") as caught:
        online([run], PngSource(20, dict.fromkeys(range(20), b"")), max_bad_frac=1.0)
    assert caught.value.where == "no results were written"


def test_a_signal_writes_nothing(run):
    before = RunPaths(run).results("test").read_bytes()
    stop = StopFlag()

    class Interrupted(PngSource):
        def read(self, key):
            stop.signal = 15
            return super().read(key)

    with pytest.raises(Stopped, match="no results were written"):
        online([run], Interrupted(20), stop=stop)
    assert RunPaths(run).results("test").read_bytes() == before


def test_a_run_of_an_older_version(run, tmp_path, monkeypatch):
    expected = online([run])[0]["metrics"]
    RunPaths(run).stores.unlink()
    with pytest.raises(LofftaError, match=r"keeps no stores.json, and its cache is gone(.|\n)*--cache"):
        online([run])
    cache = make_fake_cache(tmp_path / "new", names=("fake", "fake1"), kinds=("grid",), broken={8: b""})
    assert online([run], cache_root=cache.paths.root)[0]["metrics"] == expected
    assert evaluate(run, "test", cache_root=cache.paths.root, device="cpu")["metrics"] == expected


@pytest.mark.parametrize("option", [["--batch-size", "3"], ["--image-root", "/x"], ["--follow-links"]])
def test_options_that_need_online(run, capsys, option):
    assert main(["evaluate", str(run), *option]) == 2
    assert f"{option[0]} is for --online SOURCE" in capsys.readouterr().err


def test_the_command(finished, tmp_path, monkeypatch, capsys):
    roots = [str(shutil.copytree(finished / name, tmp_path / name)) for name in ("linear-float16", "combo-float16")]
    opened = []
    monkeypatch.setattr("loffta.images.sources.open_source", lambda spec: (opened.append(spec), PngSource(20))[1])
    monkeypatch.setattr("loffta.extraction.begin.backbone_loader", lambda _: loader())
    words = ["--online", "t.csv", "--image-root", "/x", "--follow-links", "--device", "cpu", "--json"]
    assert main(["evaluate", *roots, *words]) == 0
    assert opened == ["t.csv#root=/x#follow-links"]
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])["runs"]
    assert [entry["head"] for entry in told] == ["linear", "combo"]
    assert [line for line in lines if line.endswith(":")] == [f"{root}:" for root in roots]
    assert main(["evaluate", roots[0], "--online", "pictures", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"] == told[0]["metrics"]
