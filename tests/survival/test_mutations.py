"""Random mutations of a run's files and of configurations: a message and an exit code, never a traceback or a hang.

Seeded. What is mutated: bits, lengths, and in documents single values, which become other types, huge, deep, or go.
"""

import copy
import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from loffta_cli.main import main
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loffta.config import TrainConfig
from loffta.errors import Stopped
from loffta.evaluation import measure
from loffta.files import documents
from loffta.machine.process import StopFlag
from loffta.training import fit as loop
from loffta.training.train import train
from tests.caches import toy_cache

ODD = [
    *(None, True, -1, 0, 3, 10**18, 10**400, 1e308, float("nan"), float("inf"), -0.5, "", "3", "a" * 5000, [], {}),
    *([[]], {"a": None}, "../../../x", "\0", "\x1b[31m", "\N{RIGHT-TO-LEFT OVERRIDE}", [[[[[1]]]]], list(range(300))),
    *(b"\xff".decode("latin-1"), "linear", "holdout+train", {"lr": 1}, [None], [1, "a"]),
]


def deep(n):
    value = 1
    for _ in range(n):
        value = [value]
    return value


def places(value, at=()):
    """Every key and index of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from places(part, (*at, key))


def mutate_document(values, rng):
    """One or two places of a document become something else."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 2)):
        *way, key = rng.choice(list(places(values)) or [("new",)])
        part = values
        for step in way:
            part = part[step]
        deed = rng.choice(["odd", "odd", "odd", "gone", "deep", "swap", "more"])
        if deed == "gone":
            del part[key]
        elif deed == "more" and isinstance(part, dict):
            part[rng.choice(["new", "x" * 300, "\x1b[2J"])] = rng.choice(ODD)
        elif deed == "swap":
            other = rng.choice(list(places(values)))
            part[key] = other[-1]
        else:
            part[key] = deep(rng.choice([20, 40, 300])) if deed == "deep" else rng.choice(ODD)
    return values


def mutate_bytes(data, rng):
    """Bits, a cut, zeros, or something else altogether."""
    deed = rng.choice(["bit", "bit", "cut", "zeros", "other", "twice"])
    if deed == "cut":
        return data[: rng.randrange(len(data) + 1)]
    if deed == "twice":
        return data + data
    if deed == "other":
        return rng.choice([b"", b"\0" * 64, b"\xff\xfe", b"PK\x03\x04", b"[" * 100_000, b"<html>", os.urandom(64)])
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(data))
        changed[i : i + 1] = [changed[i] ^ 1 << rng.randrange(8)] if deed == "bit" else b"\0" * 8
    return bytes(changed)


def mutate_tensors(path, rng):
    """Other shapes, types and names, in a file that is whole: of an older version, without a checksum."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        words = dict(file.metadata() or {})
    name = rng.choice(sorted(tensors))
    deed = rng.choice(["shape", "type", "name", "gone", "nan"])
    if deed == "shape":
        tensors[name] = torch.zeros(rng.choice([(), (0,), (3, 5), (1, 2, 3, 4)]))
    elif deed == "type":
        tensors[name] = tensors[name].to(rng.choice([torch.int64, torch.bool, torch.float64, torch.bfloat16]))
    elif deed == "nan":
        tensors[name] = torch.full_like(tensors[name].float(), float("nan"))
    else:
        tensor = tensors.pop(name)
        tensors |= {"another": tensor} if deed == "name" else {}
    save_file(tensors, path, rng.choice([{}, words]))


def mutate(path, rng):
    data = path.read_bytes()
    if path.suffix == ".safetensors" and rng.random() < 0.4:
        mutate_tensors(path, rng)
    elif path.suffix in (".json", ".yaml") and rng.random() < 0.75:
        values = mutate_document(json.loads(data) if path.suffix == ".json" else yaml.safe_load(data), rng)
        path.write_bytes(json.dumps(values).encode())  # which is YAML as well
    else:
        path.write_bytes(mutate_bytes(data, rng))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr(measure, "N_RESAMPLES", 20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of three kinds, and two that were cut off: in a training, and in a search."""
    root = tmp_path_factory.mktemp("runs")
    cache = toy_cache(root / "cache")
    plain = TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe={"epochs": 2, "batch_size": 16})
    search = {"recipe": {**plain.recipe, "search_lr": [0.01, 0.1], "search_weight_decay": [0.0]}, "search": True}
    train(plain.model_copy(update={"seeds": 2, "holdout": 0.3, "augment": "trivial"}), root / "plain", StopFlag())
    train(plain.model_copy(update=search), root / "search", StopFlag())
    combo = {"grid": 2, "width": 8, "depth": 1, "epochs": 1, "batch_size": 16, "relevance_weight": 0.01}
    train(plain.model_copy(update={"head": "combo", "recipe": combo}), root / "combo", StopFlag())
    with pytest.MonkeyPatch.context() as patch:
        for name, changes, n in (("cut", {}, 4), ("cut-search", search, 3)):
            stop, step, calls = StopFlag(), loop._step, []

            def stopping(*arguments, stop=stop, step=step, calls=calls, n=n):
                calls.append(1)
                stop.signal = 15 if len(calls) >= n else None
                return step(*arguments)

            patch.setattr(loop, "_step", stopping)
            with pytest.raises(Stopped):
                train(plain.model_copy(update=changes), root / name, stop)
            patch.setattr(loop, "_step", step)
    return root


def commands_of(run, rng):
    """What one would type: the training again, an evaluation, a report."""
    config = {
        "plain": ["--seeds", "2", "--holdout", "0.3", "--augment", "trivial"],
        "search": ["--search", "--set", "search_lr=[0.01,0.1]", "--set", "search_weight_decay=[0.0]"],
        "combo": [f"--set={s}" for s in ("grid=2", "width=8", "depth=1", "relevance_weight=0.01")],
        "cut": [],
        "cut-search": ["--search", "--set", "search_lr=[0.01,0.1]", "--set", "search_weight_decay=[0.0]"],
    }[run.name]
    head = (
        ["--head", "combo", "--set", "epochs=1"] if run.name == "combo" else ["--head", "linear", "--set", "epochs=2"]
    )
    again = ["train", str(run.parent / "cache"), "--out", str(run), *head, *config, "--set", "batch_size=16"]
    split = rng.choice(["test", "train", "holdout"])
    return rng.choice(
        [
            [*again, "--device", "cpu"],
            ["evaluate", str(run), "--device", "cpu"],
            ["evaluate", str(run), "--device", "cpu", "--split", split],
            ["report", str(run), "--out", str(run / "r.html")],
        ]
    )


def ends_in_words(words, capsys, main=main):
    """The exit code of a command that may fail, but not without words."""
    code = main(words)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not {"\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}", "\0"} & {*said.err, *said.out}
    assert len(said.err) + len(said.out) < 50_000
    if code:
        assert "remedy: " in said.err or "Usage: " in said.err or "Error: " in said.err
    return code


@pytest.mark.parametrize("part", range(6))
def test_of_a_run(runs, tmp_path, capsys, part):
    codes = []
    for number in range(50):
        rng = random.Random(f"{part} {number}")
        name = rng.choice(["plain", "search", "combo", "cut", "cut-search"])
        run = shutil.copytree(runs / name, runs / "mutants" / name, dirs_exist_ok=False)
        try:
            files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != "log.txt")
            path = rng.choice(files)
            mutate(path, rng)
            words = commands_of(run, rng)
            words = [w.replace(str(runs / "mutants" / "cache"), str(runs / "cache")) for w in words]
            try:
                codes.append(ends_in_words(words, capsys))
            except BaseException as error:
                error.add_note(f"{part} {number}: {path.relative_to(run)} of {name}, {' '.join(words)}")
                raise
        finally:
            shutil.rmtree(run)
    assert {*codes} <= {0, 1, 2, 4}
    assert 10 < sum(map(bool, codes)) < 50  # it matters, and not all of it


CONFIGS = {
    "train": {
        "cache": "c",
        "head": "combo",
        "features": ["a:last"],
        "seeds": 2,
        "recipe": {"lr": 0.1, "epochs": 3, "search_lr": [0.1]},
        "augment": {"preset": "trivial", "scale": [0.5, 1.5]},
        "holdout": 0.5,
    },
    "extract": {
        "source": "folder:x",
        "cache": "c",
        "backbones": [{"name": "vit_tiny_patch16_224", "weights": "random:0", "image_px": 32}],
        "pool": "2x2",
        "share": [0, 2],
        "kinds": ["mean"],
    },
}


CONFIGS["pipeline"] = {
    "tasks": [{"name": "one", "source": "folder:{data}/x", "group": "g"}, {"name": "two", "source": "demo:digits"}],
    "extract": {
        "a": {"backbones": [{"name": "vit_tiny_patch16_224"}], "limit": 3},
        "b": {"backbones": [{"name": "x"}]},
    },
    "train": {
        "first": {"cache": "a", "head": "linear", "features": ["{backbone}:last"], "train_on": "train+val"},
        "second": {"cache": "b", "head": "combo", "recipe": {"epochs": 3}, "validate_on": "val"},
        "third": {"head": "linear", "online": {"backbone": {"name": "y"}}},
    },
    "optional": ["second"],
    "test": "online",
}


@pytest.mark.parametrize("command", CONFIGS)
def test_of_a_configuration(tmp_path, capsys, command, monkeypatch):
    """There is neither cache nor source, so that every command fails: in words."""
    monkeypatch.chdir(tmp_path)
    file = Path("config.yaml")
    for number in range(100):
        rng = random.Random(f"{command} {number}")
        file.write_text(yaml.safe_dump(CONFIGS[command]))
        mutate(file, rng)
        words = [command, "--config", str(file), *(["--out", "run"] if command == "train" else [])]
        try:
            if command == "pipeline":
                words = ["run", str(file), "--out", "run", "--data", "d", "--dry-run", "--launcher"]
                for launcher in ("local", "slurm"):
                    assert ends_in_words([*words, launcher], capsys) in (0, 1, 2)
            else:
                assert ends_in_words(words, capsys) in (1, 2)
        except BaseException as error:
            error.add_note(f"{command} {number}: {file.read_bytes()[:500]!r}")
            raise
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.yaml", "evaluate"),
        ("images.json", "evaluate"),
        ("stores.json", "evaluate"),
        ("training.json", "evaluate"),
        ("head.safetensors", "evaluate"),
        ("config.yaml", "train"),
        ("checkpoint.safetensors", "train"),
        ("config.yaml", "report"),
    ],
)
def test_files_of_another_user(runs, capsys, monkeypatch, name, command):
    """One message: which file, and what to do. (Tests run as root, whom no mode bits stop.)"""

    def refused(path, flags, real=documents._without_waiting):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags)

    monkeypatch.setattr(documents, "_without_waiting", refused)
    run = runs / ("cut" if command == "train" else "plain")
    recipe = ["--set", "epochs=2", "--set", "batch_size=16", "--device", "cpu"]
    words = {
        "train": ["train", str(runs / "cache"), "--head", "linear", "--out", str(run), *recipe],
        "evaluate": ["evaluate", str(run), "--device", "cpu"],
        "report": ["report", str(run), "--out", str(run / "r.html")],
    }[command]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f"where:  {run}" in said
    assert f"{name}\n  remedy: " in said
    assert "(Permission denied)" in said
    assert "Traceback" not in said


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize("text", [LAUGHS, "source: " + "[" * 3000 + "]" * 3000, "head: !!python/name:os.system", "x"])
@pytest.mark.parametrize("command", ["extract", "plan", "train", "run"])
def test_bombs(runs, tmp_path, capsys, command, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    words = {
        "extract": ["extract", "--config", str(file)],
        "plan": ["plan", "--config", str(file)],
        "train": ["train", "--config", str(file), "--out", str(tmp_path / "r")],
        "run": ["evaluate", str(tmp_path)],
    }[command]
    assert ends_in_words(words, capsys) in (1, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["extract", "x", "--cache", "c", "--backbone", "a", "--views", "1000000"], "views: it must be from 0 to 100"),
        (["extract", "x", "--cache", "c", "--backbone", "a", "--image-px", "10**9"], "image_px: "),
        (["extract", "x", "--cache", "c", "--backbone", "a", "--image-px", "999999"], "from 1 to 16,384"),
        (["extract", "x", "--cache", "c", "--backbone", "a", "--batch-size", "9999999"], "from 1 to 1,048,576"),
        (["extract", "x", "--cache", "c", "--backbone", "a", "--unit-images", "1048576"], "from 1 to 65,536"),
        (["train", "c", "--head", "linear", "--out", "r", "--seeds", "10000"], "seeds: it must be from 1 to 1,000"),
        (["train", "c", "--head", "linear", "--out", "r", "--data-seed", "-1"], "from 0 to 4,294,967,295"),
        (["train", "c", "--head", "linear", "--out", "r", "--checkpoint-s", "nan"], "checkpoint_s: "),
        (
            ["train", "c", "--head", "linear", "--out", "r", "--set", "lr=" + "[" * 9999],
            "the value of 'lr' cannot be read",
        ),
        (
            ["train", "c", "--head", "linear", "--out", "r", "--set", "epochs=1000001"],
            "epochs must be from 1 to 1,000,000",
        ),
        (["train", "c", "--head", "combo", "--out", "r", "--set", "width=100000"], "width must be from 1 to 8,192"),
        (["train", "c", "--head", "linear", "--out", "r", "--set", "batch_size=1e99"], "batch_size"),
    ],
)
def test_absurd_numbers_are_refused_at_once_with_the_range(runs, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    words = [str(runs / "cache") if word == "c" and words[0] == "train" else word for word in words]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
