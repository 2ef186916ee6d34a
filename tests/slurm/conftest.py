"""A real SLURM on this machine, of three nodes, for the time of the session; or the name of what is missing for it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDED = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "sacct")
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture(scope="session")
def lab():
    """The folder of a cluster that is up; slurm-up installs what is missing, but a test installs nothing."""
    missing = [name for name in NEEDED if shutil.which(name, path=SBIN) is None]
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)} missing): tests/slurm/slurm-up DIR installs it on Debian")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets allow no long path
    enforce = "AccountingStorageEnforce=associations"  # as sites do: an account that is not there is refused
    up = [HERE / "slurm-up", root, "--set", "KillWait=2", "--set", enforce]
    try:
        with (root / "up.log").open("wb") as log:  # no pipe: the daemons would hold it open
            code = subprocess.run(up, stdout=log, stderr=log, timeout=240, check=False).returncode
        assert code == 0, (root / "up.log").read_text()
        yield root
    finally:
        subprocess.run([HERE / "slurm-down", root, "--purge"], timeout=180, check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def cluster(lab, tmp_path, monkeypatch):
    """The lab for one test, in a folder of its own; what it leaves queued is taken back."""
    monkeypatch.setenv("SLURM_CONF", str(lab / "slurm.conf"))
    monkeypatch.delenv("LOFFTA_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    yield lab
    subprocess.run(["scancel", "-u", os.environ.get("USER", "root")], check=False, timeout=30)


FAKE = """#!/bin/bash
# stands in for loffta: a job of loffta's own takes seconds to import torch
case $2 in
ok) sleep "${3:-0}"; echo 'words'; echo '{"answer": 3}' ;;
fails) echo 'error: no such head' >&2; exit 2 ;;
killed) kill -9 $$ ;;
waits)  # until it is stopped; its second start ends well
    trap 'echo "stopped by $1" >&2; exit 75' TERM USR1 USR2
    echo "started ${SLURM_RESTART_COUNT:-0}" >>"$3"
    [ "$(wc -l <"$3")" = 1 ] || { echo '{"answer": 4}'; exit 0; }
    while :; do sleep 0.1; done ;;
deaf) trap '' TERM USR1 USR2
    echo "started ${SLURM_RESTART_COUNT:-0}" >>"$3"
    [ "$(wc -l <"$3")" = 1 ] || { echo '{"answer": 5}'; exit 0; }
    while :; do sleep 0.1; done ;;
esac
"""


@pytest.fixture
def fake(cluster, tmp_path, monkeypatch):
    """Jobs find a `loffta` that does what its second word says."""
    program = tmp_path / "bin" / "loffta"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    return cluster
