"""The examples of docs/schedulers.md, as far as they run without their schedulers; Snakemake's runs whole."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from loffta_cli.main import COMMANDS

from tests.fakes import cache_files

PAGE = Path(__file__).parent.parent / "docs" / "schedulers.md"
LOFFTA = """#!/bin/bash
printf '%s\\n' "$*" >>"$SAID"
exit "${CODE:-0}"
"""


def example(heading: str) -> str:
    """The block of code below a heading."""
    return re.search(r"^```\w+\n(.*?)^```", PAGE.read_text().split(f"\n## {heading}\n")[1], re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def shell(tmp_path):
    """Runs a script as a scheduler does; gives its exit code and what it called, with `loffta` and others faked."""
    for name in ("loffta", "qsub"):
        (tmp_path / name).write_text(LOFFTA if name == "loffta" else LOFFTA.replace('"$*"', '"qsub $*"'))
        (tmp_path / name).chmod(0o755)

    def run(script, **variables):
        (tmp_path / "said").unlink(missing_ok=True)
        more = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said")} | variables
        done = subprocess.run(["bash", "-c", script], env=os.environ | more, cwd=tmp_path, check=False, timeout=20)
        return done.returncode, (tmp_path / "said").read_text().splitlines()

    return run


def shard_of(line: str) -> str:
    """What `--shard` got, of a line that click takes."""
    name, *words = line.split()
    module, _, attribute = COMMANDS[name][0].partition(":")
    context = getattr(importlib.import_module(module, "loffta_cli"), attribute).make_context(name, words)
    assert (context.params["source"], context.params["backbones"]) == ("photos", ("dinov2-b",))
    return context.params["share"]


def test_a_kubernetes_job_owns_every_shard_and_starts_again_what_was_stopped(shell):
    job = yaml.safe_load(example("Kubernetes"))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert container["command"] == ["sh", "-c"]
    last = spec["completions"] - 1
    _, (line,) = shell(container["args"][0], JOB_COMPLETION_INDEX=str(last))
    assert shard_of(line) == f"{last}/{last + 1}"
    rules = {code: rule["action"] for rule in spec["podFailurePolicy"]["rules"] for code in exit_codes(rule)}
    assert rules == {75: "Ignore", 2: "FailIndex", 3: "FailIndex", 4: "FailIndex"}
    assert pod["restartPolicy"] == "Never"


def exit_codes(rule):
    return rule["onExitCodes"]["values"] if rule.get("onExitCodes", {}).get("operator") == "In" else []


def test_a_kubernetes_job_is_of_the_schema_of_its_api(tmp_path):
    """Strict: an unknown key is an error."""
    program = shutil.which("kubernetes-validate")
    if program is None:
        pytest.skip("kubernetes-validate is not on PATH: pip install kubernetes-validate, anywhere")
    (tmp_path / "job.yaml").write_text(example("Kubernetes"))
    done = subprocess.run([program, "--strict", tmp_path / "job.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("heading", "array", "variable", "offset"),
    [("PBS", r"-J (\d+)-(\d+)", "PBS_ARRAY_INDEX", 0), ("LSF", r"\[(\d+)-(\d+)\]", "LSB_JOBINDEX", 1)],
)
def test_an_array_owns_every_shard(heading, array, variable, offset, shell, tmp_path):
    first, last = (int(n) for n in re.search(array, PAGE.read_text().split(f"\n## {heading}\n")[1]).groups())
    assert first == offset
    for index in (first, last):
        variables = {variable: str(index), "PBS_O_WORKDIR": str(tmp_path)}
        code, (line,) = shell(example(heading), **variables)
        assert (code, shard_of(line)) == (0, f"{index - offset}/{last - offset + 1}")
        code, (_, *more) = shell(example(heading), CODE="75", **variables)
        assert code == 75  # which LSF's -Q and the line of qsub below look at
        assert more == ([f"qsub -v SHARD={index} extract.pbs"] if heading == "PBS" else [])
    assert '#BSUB -Q "75"' in example("LSF")


def test_pbs_goes_on_with_the_shard_that_it_submitted_anew(shell, tmp_path):
    _, (line,) = shell(example("PBS"), SHARD="7", PBS_O_WORKDIR=str(tmp_path))
    assert shard_of(line) == "7/16"


def test_ray_retries_what_was_stopped_and_nothing_else(monkeypatch):
    """With a stand-in for Ray that does what `retry_exceptions` says."""
    calls, codes = [], {3: [75, 75, 0]}

    def remote(max_retries, retry_exceptions, **_):
        def decorate(function):
            def call(shard):
                for _ in range(max_retries + 1):
                    try:
                        return function(shard)
                    except tuple(retry_exceptions):
                        continue
                raise AssertionError("retried too often")

            return types.SimpleNamespace(remote=call)

        return decorate

    def run(words):
        calls.append(shard_of(" ".join(words[1:])))
        return (codes.get(int(calls[-1].split("/")[0])) or [0]).pop(0)

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(remote=remote, get=list))
    monkeypatch.setattr(subprocess, "call", run)
    exec(example("Ray"), {})
    assert calls == [f"{i}/16" for i in (0, 1, 2, 3, 3, *range(3, 16))]
    codes[5] = [2]
    with pytest.raises(RuntimeError, match="exit code 2"):
        exec(example("Ray"), {})


@pytest.mark.long
def test_snakemake_runs_to_the_report(tmp_path):
    """Two shards of a tiny extraction; the first start of one is stopped, and tried anew."""
    program = shutil.which("snakemake")
    if program is None:
        pytest.skip("snakemake is not on PATH: pip install snakemake, anywhere")
    options = "--weights random:0 --image-px 32 --kinds mean --unit-images 32 --limit 64 --device cpu"
    text = example("Snakemake").replace("N = 16", "N = 2")
    text = text.replace("photos", "demo:digits").replace("dinov2-b", f"test_vit {options}")
    (tmp_path / "Snakefile").write_text(text.replace("--head linear", "--head linear --partial --set epochs=2"))
    real = Path(sys.executable).with_name("loffta")
    once = f'[[ $1 = extract && ! -e stopped ]] && touch stopped && exit 75\nexec "{real}" "$@"\n'
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/loffta").write_text(f"#!/bin/bash\n{once}")
    (tmp_path / "bin/loffta").chmod(0o755)
    words = [program, "--cores", "1", "--resources", "gpu=1"]
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment["SLURM_CPUS_PER_TASK"] = "1"
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stopped").exists()
    assert (tmp_path / "report.html").exists()
    words = [real, "extract", "demo:digits", "--cache", "whole", "--backbone", "test_vit", *options.split()]
    subprocess.run(words, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=900)
    assert cache_files(tmp_path / "cache", "stores/**/*") == cache_files(tmp_path / "whole", "stores/**/*")
