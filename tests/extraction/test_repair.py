"""Repair: damaged units come back byte for byte, and nothing else is written."""

import json

import pytest
from loffta_cli.main import main

from loffta.errors import Stopped
from loffta.store import writer
from loffta.store.cache import Cache
from tests.imagesets import encoded, put

EXTRACT = ["extract", "--splits", "train", "--unit-images", "4", "--device", "cpu", "--taps", "all"]
VIT = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """12 images of split train, 8 of val behind them."""
    root = tmp_path_factory.mktemp("images")
    for i in range(20):
        put(root / ("train/a" if i < 12 else "val/a") / f"{i:02d}.png", encoded(i))
    return f"folder:{root}"


@pytest.fixture(scope="module")
def pristine(images, tmp_path_factory):
    """Two stores of 12 images in 3 units; the bytes of every file."""
    root = tmp_path_factory.mktemp("pristine") / "cache"
    for size in ("32", "64"):
        assert main([*EXTRACT, images, "--cache", str(root), *VIT[:-1], size, "--kinds", "grid,mean"]) == 0
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(pristine, tmp_path):
    for name, data in pristine.items():
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(data)
    return tmp_path / "cache"


def flip(path):
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def shards(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("c.*")}


@pytest.mark.parametrize(
    ("hurt", "harm", "n_units"),
    [
        (["grid-0/c.1.0.0.0.0"], flip, 1),
        (["grid-0/c.0.0.0.0.0", "mean-0/c.2.0.0"], flip, 2),
        (["grid-0/c.2.0.0.0.0"], lambda path: path.unlink(), 1),
        (["../../targets/thumb/c.1.0.0.0"], flip, 1),
    ],
)
def test_damaged_units_come_back_and_no_other_is_written(root, pristine, capsys, hurt, harm, n_units):
    store = Cache.open(root).stores()[0].name
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    broken = [(root / "stores" / store / name).resolve() for name in hurt]
    for path in broken:
        harm(path)
    assert main(["verify", str(root), "--deep"]) == 4
    assert "add --repair" in capsys.readouterr().err
    assert main(["verify", str(root), "--deep", "--repair", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["damaged"], result["repaired"]) == ([], n_units)
    assert shards(root) == {name: data for name, data in pristine.items() if name.name.startswith("c.")}
    written = {path for path in root.rglob("*.parquet") if path.stat().st_mtime_ns != before.get(path)}
    assert len(written) == len(hurt)  # done files of the damaged units alone


def test_units_never_extracted_stay_so(root, capsys):
    """`--splits train` left two units out; repair is no extraction."""
    store = Cache.open(root).stores()[0]
    flip(store.arrays[0].paths.shard(0, 5))
    assert main(["verify", str(root), "--deep", "--repair"]) == 0
    assert len(list(store.arrays[0].paths.done_folder.glob("u*.parquet"))) == 3


def test_weights_out_of_reach_leave_the_unit_missing_and_remembered(root, pristine, capsys):
    store = Cache.open(root).stores()[0]
    path = root / "stores" / store.name / "zarr.json"
    text = path.read_text()
    path.write_text(text.replace("random:0", "package:no_such_weights"))
    flip(store.arrays[0].paths.shard(1, 5))
    assert main(["verify", str(root), "--deep", "--repair"]) == 1
    assert "no package 'no_such_weights' is installed" in capsys.readouterr().err
    assert not store.arrays[0].paths.done(1).exists()
    assert main(["verify", str(root), "--deep"]) == 4
    assert "unit 1: it was damaged, and is not written anew yet" in capsys.readouterr().out
    path.write_text(text)
    assert main(["verify", str(root), "--deep", "--repair"]) == 0
    assert shards(root) == {name: data for name, data in pristine.items() if name.name.startswith("c.")}
    assert not list(root.rglob("damaged"))


@pytest.mark.parametrize("n_units", [0, 1, 2])
def test_a_repair_that_is_stopped_is_gone_on_with(root, pristine, capsys, monkeypatch, n_units):
    """Before the first unit, and behind one or two of three: by the same command, and by nothing else than it knows."""
    store = Cache.open(root).stores()[0]
    for unit in range(3):
        flip(store.arrays[0].paths.shard(unit, 5))
    real, left = writer.write_done, iter(range(n_units))

    def stopping(*arguments):
        if next(left, None) is None:
            raise Stopped("stopped", where="here", remedy="run the same command again")
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_done", stopping)
        assert main(["verify", str(root), "--deep", "--repair"]) == 75
    capsys.readouterr()
    assert main(["verify", str(root), "--deep"]) == 4
    assert capsys.readouterr().out.count("it was damaged, and is not written anew yet") == 3 - n_units
    assert main(["verify", str(root), "--deep", "--repair", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["repaired"] == 3 - n_units
    assert shards(root) == {name: data for name, data in pristine.items() if name.name.startswith("c.")}


@pytest.mark.parametrize(
    "harm", [lambda p: p.write_text("{"), lambda p: p.unlink(), lambda p: edit(p, "float16", "float32")]
)
def test_an_array_s_zarr_json_comes_back_from_its_done_files(root, pristine, harm):
    path = min(root.glob("stores/*/grid-0/zarr.json"))
    harm(path)
    assert main(["verify", str(root)]) == 4
    assert main(["verify", str(root), "--repair"]) == 0
    assert {name: (root / name).read_bytes() for name in pristine} == pristine


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("harm", ["gone", "bit"])
def test_int8_scales_come_back_with_their_units(images, tmp_path, capsys, harm):
    root = tmp_path / "cache"
    assert main([*EXTRACT, images, "--cache", str(root), *VIT, "--kinds", "grid", "--dtype", "int8"]) == 0
    before = {path: path.read_bytes() for path in (*root.rglob("c.*"), *root.rglob("zarr.json"))}
    (chunk,) = root.glob("stores/*/grid-0-int8/scale/c.0.0")
    chunk.unlink() if harm == "gone" else flip(chunk)
    assert main(["verify", str(root)]) == 4
    capsys.readouterr()
    assert main(["verify", str(root), "--repair", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["damaged"], result["repaired"]) == ([], 3)
    assert {path: path.read_bytes() for path in (*root.rglob("c.*"), *root.rglob("zarr.json"))} == before
