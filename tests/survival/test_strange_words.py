"""Words that strangers chose, fed to every writer: none of them becomes a path, a control sequence or markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from loffta_cli.main import main

from loffta.pipeline.file import PipelineConfig
from loffta.pipeline.plan import make_pipeline
from loffta.runs.run import RunPaths, read_predictions
from loffta.store.cache import Cache
from loffta.store.paths import CachePaths, safe_name
from loffta.words import file_name
from tests.caches import FakeStore, make_cache, make_table, separable

WORDS = [
    "x/../../../evil",
    "/etc/passwd",
    "..",
    "<script>alert('x')</script><img src=x onerror=y>",
    'a"onload="b\'&amp;',
    "ab\u202etxt\u2066\u200b",  # text that a terminal shows backwards
    "\x1b[2J\x07\r\n# a line of its own",
    "-rf .hidden ~ $(x) `y` %s {z}",
    "é" * 300,
    "con\x00nul",
]
PLAIN = re.compile(r"[A-Za-z0-9._+@=~-]{1,120}")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))


def tags_of(page):
    parser = Tags()
    parser.feed(page)
    return set(parser.found)


def files_below(root):
    return sorted(path.relative_to(root) for path in root.rglob("*"))


def harmless(text):
    return all(c.isprintable() or c in "\n\u00a0" for c in text)


def fill(root, word):
    """A run measured on a split of that name, of classes, images and a backbone of that name; and its report."""
    root.mkdir(parents=True)
    labels, grids = separable(40)
    splits = ["train"] * 24 + [word] * 16
    table = make_table(labels % 2, splits, classes=(word, f"{word}2"))
    cache = make_cache(root / "cache", table, [FakeStore(word, {word: grids})])
    run = ["train", str(cache.paths.root), "--head", "linear", "--set", "epochs=1", "--device", "cpu"]
    assert main([*run, "--test-on", word, "--out", str(root / "run")]) == 0
    assert main(["evaluate", str(root / "run"), "--split", word, "--device", "cpu"]) == 0
    assert main(["report", str(root / "run"), "--out", str(root / "report.html")]) == 0
    assert main(["info", str(cache.paths.root)]) == 0
    return (root / "report.html").read_text()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """How many files plain words make, and the tags of their pages: a short one, and long ones that are wrapped."""
    roots = [tmp_path_factory.mktemp("plain") / "here" for _ in range(3)]
    pages = [
        fill(root, word)
        for root, word in zip(roots, ("word", " ".join(["a longer word"] * 20), "long" * 80), strict=True)
    ]
    return len(files_below(roots[0])), set().union(*map(tags_of, pages))


@pytest.mark.parametrize("word", WORDS)
def test_every_writer(word, plain, tmp_path, capsys, monkeypatch):
    """What is written has the same shape as for a plain word, lies in the same place, and shows nothing else."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    root = tmp_path / "deep" / "below" / "here"
    page = fill(root, word)
    shown = capsys.readouterr()
    assert harmless(shown.out)
    assert harmless(shown.err)
    names = files_below(root)
    assert [part for path in names for part in path.parts if not PLAIN.fullmatch(part)] == []
    assert len(names) == plain[0]
    assert [path for path in files_below(tmp_path) if not path.is_relative_to("deep/below")] == [Path("deep")]
    assert harmless((root / "run" / "log.txt").read_text())
    assert harmless(page)
    assert tags_of(page) <= plain[1]
    paths = RunPaths(root / "run")
    results = json.loads(paths.results(word).read_text())  # inside it is what it is
    assert results["split"] == word
    assert set(read_predictions(paths.predictions(word))["key"]) == {f"{word}/{i:03d}.png" for i in range(24, 40)}
    assert Cache.open(root / "cache").table.classes == (word, f"{word}2")


@pytest.mark.parametrize("word", WORDS)
def test_names_of_files(word, tmp_path):
    parts = [file_name(word), safe_name(word), RunPaths(tmp_path).results(word).name]
    for part in (*parts, RunPaths(tmp_path).predictions(word).name):
        assert PLAIN.fullmatch(part)
        assert part not in (".", "..")
        (tmp_path / part).write_bytes(b"")  # a file system takes it
        assert (tmp_path / part).parent == tmp_path
    assert CachePaths(tmp_path).store(f"{safe_name(word)}-0123abcd").parent == tmp_path / "stores"


def test_words_that_are_alike_as_files_are_two_files(tmp_path):
    paths = RunPaths(tmp_path)
    assert (
        len({paths.results(word) for word in (*WORDS, "x-..-..-..-evil", "etc-passwd", "val", "test")})
        == len(WORDS) + 4
    )


def test_runs_of_older_versions_keep_their_names(tmp_path):
    (tmp_path / "results-my split é.json").write_text("{}")
    paths = RunPaths(tmp_path)
    assert paths.results("my split é").name == "results-my split é.json"
    assert paths.predictions("my split é").name.startswith("predictions-my-split-~")
    assert (paths.results("test").name, paths.results("train+val").name) == ("results.json", "results-train+val.json")


def test_a_pipeline_of_a_custom_backbone(tmp_path):
    """Its name is a path to code, and a run is made for each backbone."""
    backbone = {"name": "custom:../code/net.py:make", "weights": "random:0"}
    config = PipelineConfig.model_validate(
        {
            "extract": {"cache": {"source": "demo:digits", "backbones": [backbone]}},
            "train": {"each": {"head": "linear", "features": ["{backbone}:last"]}},
        }
    )
    (run,) = make_pipeline(config, tmp_path, where=tmp_path / "p.yaml").runs
    assert run.path.parent == tmp_path / "runs"
    assert PLAIN.fullmatch(run.path.name)
