"""The scales on disk: read by other libraries, made once whoever tries, never half there."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from loffta.errors import DamageFound
from loffta.files.durable import remove_folder, sweep_tree
from loffta.store.paths import CachePaths
from loffta.store.quantise import fit_scales
from loffta.store.scales import Scales, create_scales, has_scales, read_facts, read_scales

from .conftest import TAPS, make_layout, names

LAYOUT = make_layout("grid", "int8")  # 3 taps of 5 channels
FACTS = {"seed": 0, "rows": [1, 2], "relative_rms": [0.01, 0.02, 0.03]}


def make_scales(seed=0):
    values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)).sort(dim=0).values
    return fit_scales(values[0], values[1])


@pytest.fixture
def paths(tmp_path):
    return CachePaths(tmp_path).array("store-0", "grid-0")


def same(one, other):
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.zero, other.zero)


def read_zarr(folder):
    return np.asarray(zarr.open_array(store=folder, mode="r")[...])


def read_tensorstore(folder):
    return tensorstore.open({"driver": "zarr3", "kvstore": f"file://{folder}/"}, read=True).result().read().result()


@pytest.mark.parametrize("read", [read_zarr, read_tensorstore])
def test_others_read_ours(paths, read):
    scales = make_scales()
    assert not has_scales(paths)
    assert create_scales(paths, LAYOUT, scales, FACTS)
    assert has_scales(paths)
    for name, values in (("scale", scales.scale), ("zero", scales.zero)):
        there = read(paths.scales / name)
        assert there.dtype == np.float32
        np.testing.assert_array_equal(there, values)
    assert same(read_scales(paths, LAYOUT), scales)
    assert read_scales(paths, LAYOUT).digest == scales.digest


def test_the_group_says_what_it_is(paths):
    create_scales(paths, LAYOUT, make_scales(), FACTS)
    group = zarr.open_group(store=paths.scales, mode="r")
    assert sorted(group.array_keys()) == ["scale", "zero"]
    assert group.attrs["loffta"] == {"taps": TAPS, "formula": "(q - zero) * scale; q = -128: missing", **FACTS}
    assert read_facts(paths)["relative_rms"] == FACTS["relative_rms"]
    assert CachePaths(paths.folder.parents[2]).array_names("store-0") == []  # they are no feature array


@pytest.mark.parametrize("read", [read_zarr, read_tensorstore])
def test_others_find_a_flipped_bit(paths, read):
    create_scales(paths, LAYOUT, make_scales(), FACTS)
    flip(paths.scale_chunk("scale"), 9)
    with pytest.raises(ValueError, match=r"(?i)checksum|digest mismatch"):
        read(paths.scales / "scale")


def test_the_first_wins(paths):
    first, second = make_scales(0), make_scales(1)
    assert create_scales(paths, LAYOUT, first, FACTS)
    assert not create_scales(paths, LAYOUT, second, {"seed": 9})
    assert same(read_scales(paths, LAYOUT), first)
    assert read_facts(paths)["seed"] == 0
    assert names(paths.scales.parent) == ["grid-0-int8"]


def test_of_many_at_once_one_wins_and_all_read_its_pair(paths):
    made = {seed: make_scales(seed) for seed in range(8)}
    barrier, won, seen = threading.Barrier(len(made)), [], []

    def run(seed):
        barrier.wait()
        if create_scales(paths, LAYOUT, made[seed], {"seed": seed}):
            won.append(seed)
        seen.append(read_scales(paths, LAYOUT).digest)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert set(seen) == {made[won[0]].digest}
    assert read_facts(paths)["seed"] == won[0]
    assert names(paths.scales.parent) == ["grid-0-int8"]


DIES = """
import os, sys
from pathlib import Path
import numpy as np
from loffta.store.metadata import grid_layout
from loffta.store.paths import CachePaths
from loffta.store.scales import Scales, create_scales

def child(root, left):
    def fatal(real):
        def call(*args):
            nonlocal left
            if left == 0:
                os._exit(9)  # no finally, no atexit: as a kill leaves it
            left -= 1
            return real(*args)
        return call
    os.fsync, os.rename, os.open, os.mkdir = (fatal(f) for f in (os.fsync, os.rename, os.open, os.mkdir))
    layout = grid_layout(19, (3, 2, 4, 5), "int8", 8, kind="grid", taps=["a", "b", "c"])
    ones = np.ones((3, 5), np.float32)
    create_scales(CachePaths(root).array("store-0", "grid-0"), layout, Scales(ones, ones), {})
    os._exit(0)

for n in range(1000):  # dies before its n-th system call that writes, until it gets through
    if (pid := os.fork()) == 0:
        child(Path(sys.argv[1]) / str(n), n)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
"""


def test_a_kill_at_any_call_leaves_both_arrays_or_none(tmp_path):
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=True)
    layout = make_layout("grid", "int8")
    layout.attributes["taps"] = ["a", "b", "c"]
    mine = Scales(*(np.full((3, 5), value, np.float32) for value in (2, 3)))
    states, folders = [], sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    for root in folders:
        paths = CachePaths(root).array("store-0", "grid-0")
        states.append(has_scales(paths))
        assert sweep_tree(root) is None
        assert [p.name for p in root.rglob("*grid-0*")] == ["grid-0-int8"] * states[-1]
        assert create_scales(paths, layout, mine, {}) is not states[-1]  # the next process
        assert (read_scales(paths, layout).scale == (1 if states[-1] else 2)).all()
    assert states == sorted(states)
    assert (states[0], states[-1]) == (False, True)
    assert len(states) > 10


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def swap(paths, layout, scales):
    remove_folder(paths.scales)
    create_scales(paths, layout, scales, FACTS)


BROKEN = {
    "gone": (lambda p: shutil.rmtree(p.scales), "are gone"),
    "half": (lambda p: shutil.rmtree(p.scales / "zero"), "are gone"),
    "no group": (lambda p: p.scales_metadata.unlink(), "are gone"),
    "bit of scale": (lambda p: flip(p.scale_chunk("scale"), 3), "the bytes of 'scale' do not match their crc32c"),
    "bit of zero": (lambda p: flip(p.scale_chunk("zero"), -1), "the bytes of 'zero' do not match their crc32c"),
    "cut": (lambda p: os.truncate(p.scale_chunk("zero"), 20), "the bytes of 'zero' do not match"),
    "empty": (lambda p: os.truncate(p.scale_chunk("zero"), 0), "the bytes of 'zero' do not match"),
    "shape": (lambda p: edit(p.scale_metadata("zero"), shape=[5, 3]), "metadata of 'zero' is not that of a"),
    "type": (lambda p: edit(p.scale_metadata("scale"), data_type="int32"), "metadata of 'scale' is not that"),
    "json": (lambda p: p.scales_metadata.write_text("{"), "are damaged"),
    "taps": (
        lambda p: swap(p, make_layout("grid", "int8").resized(4), make_scales()) or edit_taps(p),
        "they are those of taps x, y",
    ),
    "negative": (lambda p: swap(p, LAYOUT, Scales(-make_scales().scale, make_scales().zero)), "a scale is not over 0"),
    "nan": (lambda p: swap(p, LAYOUT, Scales(make_scales().scale * np.nan, make_scales().zero)), "not over 0"),
    "half zero": (lambda p: swap(p, LAYOUT, Scales(make_scales().scale, make_scales().zero / 3)), "a zero point is no"),
}


def edit_taps(paths):
    attributes = json.loads(paths.scales_metadata.read_bytes())["attributes"]
    attributes["loffta"]["taps"] = ["x", "y"]
    edit(paths.scales_metadata, attributes=attributes)


@pytest.mark.parametrize("name", BROKEN)
def test_damage_is_named(paths, name):
    create_scales(paths, LAYOUT, make_scales(), FACTS)
    harm, what = BROKEN[name]
    harm(paths)
    with pytest.raises(DamageFound) as caught:
        read_scales(paths, LAYOUT)
    assert what in caught.value.what
    assert caught.value.what.startswith("the scales of this int8 array are")
    assert caught.value.where == str(paths.scales)
    assert "loffta verify CACHE --repair" in caught.value.remedy


def test_more_attributes_from_another_library_do_no_harm(paths):
    create_scales(paths, LAYOUT, make_scales(), FACTS)
    edit(paths.scale_metadata("scale"), attributes={"note": "mine"}, dimension_names=["tap", "channel"])
    assert same(read_scales(paths, LAYOUT), make_scales())
