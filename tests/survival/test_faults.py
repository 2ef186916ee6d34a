"""Every file operation of extract, train, verify, repair and drop fails once: one message that names a file, an exit
code of the documented ones, and the same command then ends as if nothing had happened.

In `make test` a sample of them, in `make test-long` each one, with one error after the other. `pytest -s` prints them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import cache_files
from tests.survival.commands import VIT

HERE = Path(__file__).parent
EXIT_CODES = {0, 1, 2, 3, 4, 75}  # docs/quickstart.md
SAMPLE = 5  # operations of each command


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Runs commands with a fault; skipped where no C compiler or no preloading is there."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler here, or no Linux: file operations cannot be made to fail")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, HERE / "faulty.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def run(words, folder, n=-1, how=0):
            job = {"words": [str(word) for word in words], "folder": str(folder), "n": n, "how": how}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "the process has died: is LD_PRELOAD obeyed here?"
            return json.loads(line)

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def few(tmp_path_factory, pictures):
    """Four pictures: two units of 2."""
    root = tmp_path_factory.mktemp("few") / "pictures"
    for i, path in enumerate(sorted(pictures.rglob("*.png"))[:4]):
        place = root / ("train" if i % 2 else "test") / ("a" if i < 2 else "b") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return root


@pytest.fixture(scope="module")
def extract_few(few):
    return ["extract", few, *VIT, "--unit-images", "2", "--batch-size", "2", "--kinds", "grid", "--cache"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, faulty, extract_few):
    root = tmp_path_factory.mktemp("undisturbed") / "cache"
    made = faulty([*extract_few, root], root)
    assert made["code"] == 0, made["err"]
    return root


def hurt(cache):
    shard = min(cache.glob("stores/*/grid-0/c.1.*"))
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)


def nothing(cache):
    """It is sound as it is."""


TRAIN = ["--head", "linear", "--set", "epochs=1", "--device", "cpu", "--out"]
# name -> what happens to a copy of the cache (None: there is none), the command, whether the cache ends as it was
COMMANDS = {
    "extract": (None, lambda cache, extract: [*extract, cache]),
    "train": (nothing, lambda cache, _: ["train", cache, *TRAIN, cache.parent / "run"]),
    "verify": (nothing, lambda cache, _: ["verify", cache, "--deep"]),
    "repair": (hurt, lambda cache, _: ["verify", cache, "--deep", "--repair"]),
    "drop": (nothing, lambda cache, _: ["drop", cache, next((cache / "stores").iterdir(), cache).name, "--yes"]),
}


def begin(folder, name, undisturbed, extract_few):
    """A fresh copy for one trial, and the command."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    harm, words = COMMANDS[name]
    if harm is not None:
        shutil.copytree(undisturbed, folder / "cache")
        harm(folder / "cache")
    return words(folder / "cache", extract_few)


def outcome(folder):
    """What there is in the end: the cache, and the heads of a run."""
    heads = {path.name: path.read_bytes() for path in folder.glob("run/*.safetensors") if "checkpoint" not in path.name}
    return cache_files(folder / "cache"), heads


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_file_operation_that_fails(tmp_path, faulty, undisturbed, extract_few, name, every):
    folder = tmp_path / "trial"
    words = begin(folder, name, undisturbed, extract_few)
    whole = faulty(words, folder / "cache")
    assert whole["code"] == 0, whole["err"]
    expected, n_calls = outcome(folder), whole["count"]
    assert n_calls > 20
    first = sum(map(ord, name)) % max(1, n_calls // SAMPLE)
    for how, n in enumerate(range(n_calls) if every else range(first, n_calls, n_calls // SAMPLE)):
        words = begin(folder, name, undisturbed, extract_few)
        hit = faulty(words, folder / "cache", n, how)
        told = f"{name}, operation {n}: {hit['failed']} -> {hit['code']}\n{hit['err'][-1500:]}"
        print(told.split("\n")[0])
        assert "Traceback" not in hit["err"], told
        assert hit["code"] in EXIT_CODES, told
        if hit["code"] != 0:
            assert re.search(r"error: .+\n  where:  .+\n  remedy: .+", hit["err"], re.DOTALL), told
            assert str(folder) in hit["err"], told
        again = faulty(words, folder / "cache")
        assert again["code"] == 0 or (name == "drop" and "unknown store" in again["err"]), f"{told}\n{again['err']}"
        assert outcome(folder) == expected, told
