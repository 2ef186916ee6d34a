"""What a status says of units and logs; how it stands with SLURM itself: tests/slurm."""

import json
from pathlib import Path

import pytest

from loffta.errors import LofftaError
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.machine.usage import Cost
from loffta.pipeline import engine
from loffta.pipeline.engine import Ended
from loffta.pipeline.jobs import Array, SlurmPaths, write_record
from loffta.pipeline.shared import find_suffix, keep_suffix
from loffta.pipeline.stages import Stage
from loffta.pipeline.status import MORE_MEMORY, Finished, look, tail
from loffta.pipeline.submitted import keep_plan, read_plans
from tests.fakes import UNIT, FakeBackbone, PngSource, fake_config


def test_units_are_those_of_the_ledger(tmp_path):
    """Of 5 units the first share of two has written its 3."""
    cache = tmp_path / "cache"
    parts = [Stage(f"extract {i}/2", ["extract"], writes=(cache,), part=(i, 2)) for i in range(2)]
    whole = Stage("extract", ["extract"], writes=(cache,))
    assert Finished().of(whole) is None
    extract(fake_config(cache, share=(0, 2)), PngSource(5 * UNIT), lambda _: FakeBackbone(), StopFlag())
    finished = Finished()
    assert [finished.of(stage) for stage in (*parts, whole)] == [(3, 3), (0, 2), (3, 5)]
    assert finished.of(Stage("train", ["train"], writes=(tmp_path / "run",))) is None


def test_the_end_of_a_log_is_harmless(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 9000 + b"\n\nred \x1b[31m\nsrun: error: n1: task 0: Exited with exit code 1\nbad \xff\n")
    assert tail(log)[-2:] == ("red \N{REPLACEMENT CHARACTER}[31m", "bad \N{REPLACEMENT CHARACTER}")
    assert max(map(len, tail(log))) == 300
    assert tail(tmp_path / "none") == ()


BIG = Stage("big", ["train", "big"])


@pytest.mark.parametrize(
    ("of_site", "expected"),
    [
        (Ended("FAILED", 137, 0, "4G"), Cost(3.0 * 3600, 7200.0, 3000.0)),  # nobody keeps accounts
        (Ended("OUT_OF_MEMORY", 0, 125, "4G", starts=2, cost=Cost(1.0, 9000.0, 4000.0)), Cost(10800.0, 9000.0, 4000.0)),
    ],
)
def test_a_killed_stage_tells_its_peak_and_all_its_starts(tmp_path, monkeypatch, of_site, expected):
    """By its own words, left before it was killed, and by the site's where these say more."""
    paths = SlurmPaths(tmp_path)
    paths.usage.mkdir(parents=True)
    for start, (hours, mib) in enumerate([(1.0, 3000.0), (2.0, 500.0)]):
        told = {"cpu_hours": hours, "gpu_hours": 1.0, "peak_rss_mib": mib, "peak_gpu_mib": None}
        (paths.usage / f"{BIG.mark}.9-{start}.json").write_text(json.dumps(told))
    (paths.usage / f"{BIG.mark}.9-2.json").write_text("[")  # of a full disk
    write_record(paths, Array([BIG]), ["9"])
    monkeypatch.setattr(engine, "queue", lambda _: [])
    monkeypatch.setattr(engine, "ended", lambda jobs: {f"{job}_0": of_site for job in jobs})
    (state,) = look([BIG], tmp_path)
    assert (state.state, state.starts, state.cost) == ("failed", 3, expected)
    peak = f"{expected.peak_rss_mib * 2**20 / 1e9:.1f} GB of 4.3 GB"
    assert state.why == f"killed (SIGKILL), most likely for memory: its memory peaked at {peak}; {MORE_MEMORY}"
    assert ("--mem " in MORE_MEMORY, "--feed stream" in MORE_MEMORY) == (True, True)


def test_what_was_submitted_is_known_to_the_folder(tmp_path, monkeypatch):
    """Asked for from elsewhere; a choice of stages stands beside those before, a whole pipeline replaces them."""
    monkeypatch.chdir(tmp_path)
    parts = [Stage(f"extract {i}/2", ["extract", "a b"], writes=(Path("out/c"),), part=(i, 2)) for i in range(2)]
    train = Stage("train", ["train"], ("extract 0/2",), reads=(Path("out/c"),))
    report = Stage("report", ["run"], ("train",), always=True)
    keep_plan([*parts, train], Path("out"), "", whole=False)
    keep_plan([Stage("extract", ["extract"]), report], Path("out"), "", whole=False)
    keep_plan([BIG], Path("out"), "-other", whole=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = tmp_path / "out"
    found = read_plans(out, "")
    assert [stage.name for stage in found] == ["train", "extract", "report"]
    assert found[0].mark == train.mark
    assert (found[0].needs, found[0].reads, found[2].always) == (train.needs, (out / "c",), True)
    assert [stage.name for stage in read_plans(out)] == ["big", "train", "extract", "report"]
    monkeypatch.chdir(tmp_path)
    keep_plan(parts, out, "", whole=True)
    assert [(s.name, s.part, s.writes) for s in read_plans(out, "")] == [(s.name, s.part, (out / "c",)) for s in parts]
    assert read_plans(tmp_path / "none") == []


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"stages": [{"name": "x"}]}', '{"stages": [{"name": "x", "arguments": []}]}']
)
def test_a_plan_that_cannot_be_read(tmp_path, text):
    path = SlurmPaths(tmp_path).plan("")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(LofftaError, match=r"cannot read which stages were submitted(.|\n)*delete the file"):
        read_plans(tmp_path)


def test_pipelines_of_one_folder_have_names_of_their_own(tmp_path):
    """The first has the plain ones; the same file under another path is the same, another of its name is not."""
    out = tmp_path / "out"
    assert find_suffix(out, Path("/a/deap/voc.yaml")) == ""
    assert not out.exists()
    for file, suffix in (
        ("/a/deap/voc.yaml", ""),
        ("/a/deap/nyu.yaml", "-nyu"),
        ("/a/mine/nyu.yaml", None),
        ("/b/deap/voc.yaml", ""),
        ("/b/deap/nyu.yaml", "-nyu"),
    ):
        found = find_suffix(out, Path(file))
        keep_suffix(out, Path(file))
        assert find_suffix(out, Path(file)) == found
        assert found == suffix or (suffix is None and found.startswith("-nyu-"))


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": "/../x"}', '{"a": "-../x"}'])
def test_names_that_cannot_be_read(tmp_path, text):
    (tmp_path / "pipelines.json").write_text(text)
    with pytest.raises(LofftaError, match=r"cannot read which pipelines share this folder(.|\n)*delete the file"):
        find_suffix(tmp_path, Path("p.yaml"))
