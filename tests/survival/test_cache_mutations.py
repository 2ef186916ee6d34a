"""300 random changes to a cache's metadata, one at a time: an error that is told or a cache that still works, never a
traceback, never a hang.

What is changed is what small files say (a value, a key, the nesting, the size) or what they are (cut, flipped bits, a
pipe, a folder, a link that leads round in a circle).
"""

import json
import os
import random
import shutil
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loffta_cli.main import main

from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from tests.fakes import FakeBackbone, PngSource, fake_config

N_MUTATIONS = 300
NASTY = [
    *(None, True, [], {}, "", "../../../tmp/x", "\x1b[2J\u202e", -1, 0, 1.5, 2**63, 10**400, 1e308, "9" * 5000),
    *(float("nan"), [[]] * 5, {"a": {"b": []}}, ["blocks.0"] * 3, "float64", "int8", "bool", [1, 1, 1], 10**12),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Stores of float16 and of int8."""
    root = tmp_path_factory.mktemp("mutations") / "cache"
    for dtype in ("float16", "int8"):
        config = fake_config(root, dtype=dtype, kinds=("grid", "mean"))
        extract(config, PngSource(20), lambda _: FakeBackbone(), StopFlag())
    return root


def places(value, path=()):
    """Every place in a document."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def change(document, rng):
    """A copy with one value exchanged, or one key taken away, renamed or put in."""
    document = json.loads(json.dumps(document))
    path = rng.choice([place for place in places(document) if place])
    *above, last = path
    owner = document
    for key in above:
        owner = owner[key]
    deed = rng.randrange(6)
    if deed == 0:
        del owner[last]
    elif deed == 1 and isinstance(owner, dict):
        owner["stranger"] = owner.pop(last)
    elif deed == 2:
        owner[last] = [owner[last]]
    else:
        owner[last] = rng.choice(NASTY)
    return document


def change_json(path, rng):
    document = change(json.loads(path.read_bytes()), rng)
    try:
        path.write_text(json.dumps(document))
    except ValueError:  # a number of more digits than Python writes
        path.write_text(json.dumps(document, default=str).replace("stranger", "x"))


def change_bytes(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def nest(path, rng):
    path.write_text(rng.choice(["[" * 100_000, '{"a":' * 50_000, "[" * 40 + "]" * 40, "null", "7", '"x"', ""]))


def pipe(path, rng):
    path.unlink()
    rng.choice([os.mkfifo, os.mkdir, lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero")])(path)


def change_parquet(path, rng):
    """Sound parquet that says something else: its columns, their types, its metadata."""
    table = pq.read_table(path)
    meta = json.loads(table.schema.metadata[b"loffta"])
    name = rng.choice(table.column_names)
    deed = rng.randrange(5)
    if deed == 0:
        table = table.drop_columns([name])
    elif deed == 1:
        table = table.set_column(0, name, pa.array([None] * len(table), table.schema.field(name).type))
    elif deed == 2:
        table = table.set_column(
            table.column_names.index(name), name, pa.array([rng.choice(["x", "\x1b"])] * len(table))
        )
    elif deed == 3:
        table = pa.concat_tables([table] * rng.choice([2, 50])) if rng.random() < 0.5 else table.slice(1)
    else:
        meta = change(meta, rng)
    text = rng.choice([json.dumps(meta, default=str)] * 6 + ["[" * 10_000, "null", "{"])
    pq.write_table(table.replace_schema_metadata({b"loffta": text.encode()}), path)


def mutate(path, rng):
    plain = [change_json] * 5 if path.suffix == ".json" else [change_parquet] * 4 if path.suffix == ".parquet" else []
    deed = rng.choice([*plain, change_bytes, cut, nest, pipe])
    deed(path, rng)
    return deed.__name__


def hang(*_):
    raise AssertionError("it hangs")


def test_random_changes_of_metadata(sound, tmp_path, capsys):
    rng = random.Random(11)
    documents = sorted([*sound.rglob("*.json"), *sound.rglob("*.parquet"), *sound.rglob("c.0.0")])
    stores = sorted(path.name for path in (sound / "stores").iterdir())
    codes, failed = [], []
    previous = signal.signal(signal.SIGALRM, hang)
    for i in range(N_MUTATIONS):
        path = rng.choice(documents)
        before = path.read_bytes()
        deed = mutate(path, rng)
        words = [["info", sound], ["verify", sound], ["verify", sound, "--deep"], ["info", sound, "--json"]][i % 4]
        if i % 12 == 0:
            words = ["train", sound, "--features", stores[i // 12 % 2], "--set", "epochs=1", "--device", "cpu"]
            words += ["--head", "linear", "--out", tmp_path / f"run-{i}"]
        signal.alarm(60)
        try:
            codes.append(main([str(word) for word in words]))
        except BaseException as error:
            failed.append(
                f"{i}: {words[0]} after {deed} of {path.relative_to(sound)}: {type(error).__name__}: {error!s:.200}"
            )
        finally:
            signal.alarm(0)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(before)
        err = capsys.readouterr()
        assert "\x1b" not in err.err + err.out, (deed, path)
    signal.signal(signal.SIGALRM, previous)
    assert failed == []
    assert {*codes} <= {0, 1, 2, 3, 4}
    assert codes.count(4) > N_MUTATIONS / 4
    assert main(["verify", str(sound), "--deep"]) == 0
