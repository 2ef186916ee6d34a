"""One training on two nodes of a real SLURM: by torchrun in shares of batches, by srun with seeds dealt out."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loffta_cli.main import main

from loffta.files.tensor_file import read_tensors
from tests.caches import toy_cache

TEMPLATES = Path(__file__).parent.parent.parent / "pipelines" / "slurm"
SMALL = ["--mem=1500M", "--cpus-per-task=1", "--time=10"]
TRAIN = "--head linear --device cpu --set batch_size=9 --set min_steps=null"


def state_of(job):
    asked = ["squeue", "-h", "-j", job, "-o", "%T"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip()


def wait(condition, seconds, log):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, Path(log).read_text() if Path(log).exists() else "no log"
        time.sleep(0.2)


def submit(words, **more):
    environment = os.environ | more | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sbatch", "--parsable", *words], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def heads_of(out):
    return {str(path.relative_to(out)): read_tensors(path)[0] for path in sorted(Path(out).rglob("head.safetensors"))}


@pytest.mark.long
def test_the_template_of_a_training_on_two_nodes_runs_as_it_is(cluster, tmp_path, monkeypatch):
    """But for its site's words; stopped in the middle, it requeues itself and ends with the weights of one process."""
    toy_cache(tmp_path / "cache")
    options = f"{TRAIN} --set epochs=60 --checkpoint-s 0.2"
    told = {"CACHE": "cache", "OUT": "run", "OPTIONS": options, "GPUS": "1"}
    job = submit([*SMALL, "--gres=gpu:1", TEMPLATES / "train-ddp.sbatch"], **told)
    wait(Path("run/checkpoint.safetensors").exists, 240, "train-ddp.log")
    subprocess.run(["scancel", "--signal=USR1", job], check=True, timeout=30)
    wait(lambda: not state_of(job), 600, "train-ddp.log")
    log = Path("train-ddp.log").read_text()
    assert Path("run/results.json").exists(), log
    said = Path("run/log.txt").read_text()
    assert "ended: stopped by SIGUSR1 while training step" in said
    assert "goes on after step" in said
    assert log.count("stopped by SIGUSR1 while training step") == 2  # both ranks, at one step
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert main(["train", "cache", "--out", "one", *options.split()]) == 0
    found, expected = heads_of("run"), heads_of("one")
    assert found.keys() == expected.keys()
    for head, tensors in expected.items():
        for name, tensor in tensors.items():
            off = (found[head][name] - tensor).abs().max() / tensor.abs().max()
            assert off < 1e-3, (name, off)


@pytest.mark.long
def test_seeds_are_dealt_out_to_two_nodes(cluster, tmp_path, monkeypatch):
    toy_cache(tmp_path / "cache")
    words = f"{TRAIN} --set epochs=3 --seeds 3"
    job = submit([*SMALL, "-N2", "-n2", "-oseeds.log", f"--wrap=srun loffta train cache --out run {words}"])
    wait(lambda: not state_of(job), 240, "seeds.log")
    assert Path("run/results.json").exists(), Path("seeds.log").read_text()
    assert len(list(Path("run/dealt").glob("heads-*"))) == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert main(["train", "cache", "--out", "one", *words.split()]) == 0
    names = [f"seed-{seed}/head.safetensors" for seed in range(3)]
    assert all((Path("run") / name).read_bytes() == (Path("one") / name).read_bytes() for name in names)
