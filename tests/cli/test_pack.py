"""`loffta pack` and `loffta unpack`, and the other commands on what they make."""

import json
import shutil

import pytest
from loffta_cli.main import main

from tests.cli.small import SMALL, assert_error
from tests.store.conftest import flip_bit

pytestmark = pytest.mark.usefixtures("quiet_process")
# tokens enough that a codec makes them smaller
EXTRACT = [
    "extract",
    "demo:digits",
    "--backbone",
    "test_vit",
    "--weights",
    "random:0",
    "--image-px",
    "64",
    "--taps",
    "all",
]


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound") / "cache"
    assert main([*EXTRACT, "--cache", str(root), *SMALL]) == 0
    return root


@pytest.fixture
def packed(sound, command, tmp_path):
    code, _, err = command("pack", sound, "--out", tmp_path / "packed")
    assert code == 0, err
    return tmp_path / "packed"


def test_there_and_back(sound, command, tmp_path):
    packed, back = tmp_path / "packed", tmp_path / "back"
    code, out, _ = command("pack", sound, "--out", packed, "--json")
    *lines, last = out.splitlines()
    result = json.loads(last)
    assert code == 0
    assert lines[-1] == f"  loffta verify {packed}"
    assert [(array["codec"], array["images"]) for array in result["arrays"]] == [("zstd", 6), (None, 6)]
    assert [array["bytes"] < array["plain_bytes"] for array in result["arrays"]] == [True, False]
    assert (result["cache"], result["units"], result["images"]) == (str(packed), 2 * 6, 1797)
    assert "some images have no features in it: their units are not extracted yet" in lines
    code, out, _ = command("pack", sound, "--out", packed)
    assert code == 0
    assert "nothing to do" in out
    assert command("unpack", packed, "--out", back)[0] == 0
    assert tree(back) == tree(sound)


def test_other_commands_take_it_as_it_is(packed, command):
    assert command("verify", packed)[0] == 0
    assert "packed (zstd)\n" in command("info", packed)[1]
    code, out, _ = command(*EXTRACT, "--cache", packed, *SMALL)
    assert code == 0
    assert "nothing to do" in out
    more = [word if word != "6" else "7" for word in SMALL]
    code, _, err = command(*EXTRACT, "--cache", packed, *more)
    assert code == 1
    assert "error: this array is packed: nothing can be added to it\n" in err
    assert "remedy: `loffta unpack CACHE --out DIR` gives the fast form" in err


def test_damage(packed, command):
    (shard,) = packed.glob("stores/*/grid-0/c.0.*")
    flip_bit(shard, 50)
    code, out, err = command("verify", packed)
    assert code == 4
    assert "grid-0, unit 0: row 0, blocks.0: the bytes do not match their crc32c" in out
    assert "--repair" not in err
    assert "run the `loffta pack` that made this copy again:\n    rm " in err
    assert f"{packed}/done/" in err
    code, _, err = command("verify", packed, "--repair")
    assert code == 1
    assert "a packed cache is not repaired" in err


def test_usage(sound, command, tmp_path):
    assert command("pack", sound)[0] == 2
    assert_error(command("pack", sound, "--out", sound / "in"), 2, "a copy inside the cache", "give another folder")
    assert_error(command("pack", sound, "--out", tmp_path / "x", "--codec", "zip"), 2, "unknown codec 'zip'", "zstd")
    assert_error(command("pack", tmp_path, "--out", tmp_path / "x"), 1, "there is no cache here")
    shutil.copytree(sound, tmp_path / "begun")
    (tmp_path / "begun" / "cache.json").unlink()
    assert_error(command("info", tmp_path / "begun"), 1, "a copy was begun", "loffta pack")
