"""What the tests of this folder share."""

import contextlib
import io
import shutil
import signal

import pytest
from loffta_cli.main import main

from loffta.pipeline import local
from tests.cli.small import SMALL, VIT


@pytest.fixture
def quiet_process(monkeypatch):
    """One thread, and the signals of the test's process stay as they are."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, 10, 12)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command(capsys):
    """Runs one command; gives its exit code, stdout and stderr, and refuses tracebacks."""

    def call(*args):
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "Traceback" not in out
        return code, out, err

    return call


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Six of the digits, all taps of a small ViT."""
    root = tmp_path_factory.mktemp("sound") / "cache"
    assert main(["extract", "demo:digits", "--cache", str(root), *VIT, "--taps", "all", *SMALL]) == 0
    return root


@pytest.fixture
def cache(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "cache")


@pytest.fixture
def in_process(monkeypatch):
    """Stages of a pipeline run here: an import of torch a stage would make minutes of seconds. Real processes:
    tests/pipeline/test_local.py."""

    ended = []

    def start(self, name, command, environment):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            code = main(list(command[3:]))
        ended.append((name, code, text.getvalue()))

    monkeypatch.setattr(local._Children, "start", start)
    monkeypatch.setattr(local._Children, "wait", lambda self: ended.pop())
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
