"""`loffta info` and `loffta verify` as a user meets them, on whole, partial and damaged caches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.small import SMALL, VIT, assert_error


def test_info_on_a_partial_cache(command, cache):
    code, out, err = command("info", cache, "--json")
    assert (code, err) == (0, "")
    held = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert (held["source"], held["images"], held["classes"], held["bad"]) == ("demo:digits", 1797, 10, {})
    assert (held["splits"], held["unit_images"]) == ({"train": 1000, "test": 797}, 4)
    (store,) = held["stores"]
    assert store["recipe"]["input"]["image_px"] == 32
    kinds = {array["kind"]: array for array in store["arrays"]}
    assert set(kinds) == {"grid", "prefix"}
    for array in (*store["arrays"], held["thumbnails"]):
        assert (array["units_done"], array["units"], array["files"]) == (0, 450, 6)  # all part-filled
        assert array["shape"][0] == 1797
        assert array["bytes"] > 0
        assert array["old_rows_only"] is False
    assert "demo:digits: 1797 images (train 1000, test 797), 10 classes, single-label, 0 bad" in out
    assert f"{store['store']}  test_vit [random:0 weights], 32 px, " in out
    assert out.count("0/450 units") == 4  # two arrays, the store as a whole, thumbnails


def test_info_on_a_complete_cache(command, tmp_path):
    command("extract", "demo:digits", "--cache", tmp_path, *VIT, "--unit-images", "512", "--batch-size", "256")
    code, out, err = command("info", tmp_path)
    assert (code, err, out.count(" 4/4 units")) == (0, "", 4)
    assert "\n{" not in out


def test_one_image_one_unit_and_one_tap(command, tmp_path):
    words = ["extract", "demo:digits", "--cache", tmp_path, *VIT, "--kinds", "grid", "--device", "cpu", "--limit", "1"]
    _, out, _ = command(*words)
    assert ": 1 tap, " in out
    assert "\n1 unit, 1 image in " in out
    _, out, _ = command("info", tmp_path)
    assert out.count(" 0/8 units, 1 image  ") == 2  # of the unit's 256 images


def test_columns_of_info_stand_under_each_other(command, tmp_path):
    taps = ["--taps", "blocks.0.mlp.hidden,blocks.5.mlp.hidden", "--kinds", "grid"]
    words = ["extract", "demo:digits", "--cache", tmp_path, "--unit-images", "2048", "--limit", "2", "--device", "cpu"]
    command(*words, *VIT, *taps)
    command(*words, *VIT, "--taps", "last", "--kinds", "grid,prefix")
    code, out, _ = command("info", tmp_path)
    assert code == 0
    lines = [line.strip() for line in out.splitlines() if "/1 unit, 2 images" in line]
    assert len(lines) == 4  # three arrays, thumbnails
    assert any("blocks.0.mlp.hidden .. blocks.5.mlp.hidden" in line for line in lines)
    assert len({line.index("/1 unit, ") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("name", ["info", "verify"])
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_cache(command, tmp_path, name, there):
    root = tmp_path if there else tmp_path / "nowhere"
    assert_error(command(name, root), 1, "there is no cache here", str(root), "`loffta extract SOURCE --cache DIR")


@pytest.mark.parametrize("name", ["info", "verify"])
def test_a_file_that_is_no_cache(command, tmp_path, name):
    (tmp_path / "f").write_text("")
    assert_error(command(name, tmp_path / "f"), 1, "there is no cache here")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "unit_images": 4, "thumb_px": 8}'])
@pytest.mark.parametrize("name", ["info", "verify"])
def test_a_damaged_or_newer_configuration(command, cache, name, text):
    (cache / "cache.json").write_text(text)
    assert_error(command(name, cache), 1, "cannot read the cache's configuration", "cache.json")


def test_verify_json(command, cache):
    assert command("verify", cache)[:2] == (0, "no damage found in the checksums; --deep reads every byte\n")
    (shard,) = cache.glob("stores/*/grid-0/c.0.*")
    shard.unlink()
    code, out, err = command("verify", cache, "--json")
    assert code == 4
    assert "1 unit is damaged" in err
    (damage,) = json.loads(out.splitlines()[-1])["damaged"]
    assert damage["path"] == str(shard)
    assert damage["unit"] == 0
    assert damage["array"].endswith("/grid-0")


@pytest.mark.smoke
def test_extract_and_verify_from_end_to_end(tmp_path):
    def loffta(*args):
        words = [sys.executable, "-m", "loffta_cli", *map(str, args)]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    assert loffta("extract", "demo:digits", "--cache", "c", *VIT, *SMALL, "--json")["images"] == 6
    nothing = {"damaged": [], "lost_metadata": [], "repaired": 0, "altered_images": [], "recomputed": []}
    assert loffta("verify", "c", "--deep", "--json") == {"deep": True, **nothing}


def test_a_store_of_unknown_input_size_is_shown(command):
    code, out, err = command("info", Path(__file__).parents[1] / "data" / "format1")
    assert (code, err) == (0, "")
    assert "? px" in out
