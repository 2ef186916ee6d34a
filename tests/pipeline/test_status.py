"""What a status says of units and logs; how it stands with SLURM itself: tests/slurm."""

from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.pipeline.stages import Stage
from loffta.pipeline.status import Finished, tail
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
