"""`loffta extract`, `info` and `verify` as a user meets them: options, files, messages, exit codes, JSON."""

import json

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from loffta_cli.extract import command as extract
from loffta_cli.main import main
from PIL import Image

from loffta.door.options import pair_backbones, parse_share
from loffta.errors import UsageError
from loffta.extraction.extract import Report
from loffta.machine.process import describe
from loffta.runs.run import RunPaths
from loffta.store.cache import Cache
from loffta.store.zarr_reader import open_array
from tests.cli.small import SMALL, VIT, assert_error


def test_pairs():
    a, b = {"name": "a"}, {"name": "b"}
    assert pair_backbones(("a", "b"), weights=(), taps=(), image_px=()) == (a, b)
    assert pair_backbones(("a", "b"), weights=("w",), taps=(), image_px=(64,)) == (
        a | {"weights": "w", "image_px": 64},
        b | {"weights": "w", "image_px": 64},
    )
    assert pair_backbones(("a", "b"), weights=("v", "w"), taps=("last",), image_px=()) == (
        a | {"weights": "v", "taps": "last"},
        b | {"weights": "w", "taps": "last"},
    )
    assert pair_backbones((), weights=(), taps=(), image_px=()) == ()


@pytest.mark.parametrize(
    ("option", "values", "pairs"),
    [
        ("--weights", ["u", "v"], "3 backbones: a with u, b with v, c with ?"),
        ("--taps", ["u", "v", "w", "x"], "3 backbones: a with u, b with v, c with w"),
        ("--image-px", ["32", "64"], "3 backbones: a with 32, b with 64, c with ?"),
    ],
)
def test_a_wrong_count_shows_the_pairs(command, tmp_path, option, values, pairs):
    backbones = [word for name in "abc" for word in ("--backbone", name)]
    options = [word for value in values for word in (option, value)]
    result = command("extract", "demo:digits", "--cache", tmp_path / "c", *backbones, *options)
    assert_error(result, 2, f"{option} was given {len(values)} times for", pairs, option, "give it once for all")
    assert not (tmp_path / "c").exists()


def test_an_option_of_a_backbone_without_one(command, tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({"source": "demo:digits", "cache": "c", "backbones": [{"name": "a"}]}))
    result = command("extract", "--config", file, "--taps", "last4")
    assert_error(result, 2, "--taps belongs to a --backbone", "repeat the backbone's name")


@pytest.mark.parametrize(("text", "share"), [("0/1", (0, 1)), ("3/4", (3, 4))])
def test_share(text, share):
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["1", "1/1", "4/3", "-1/3", "a/b", "0/0", "/", "1/2/3", "²/3"])
def test_no_share(text):
    with pytest.raises(UsageError, match=r"is no share of the work\n  where:  --shard\n  remedy: write I/N"):
        parse_share(text)


@pytest.mark.parametrize(
    ("words", "stagger", "helps"),
    [
        ([], None, None),
        (["--stagger", "--help-others"], 60.0, True),
        (["--stagger", "20", "--no-help-others"], 20.0, False),
        (["--stagger"], 60.0, None),
    ],
)
def test_shares_that_wait_and_help(words, stagger, helps):
    found = extract.make_context("extract", ["src", "--cache", "c", *words, "--shard", "auto"]).params
    assert (found["source"], found["stagger"], found["help_others"]) == ("src", stagger, helps)
    assert parse_share("auto") == "auto"


def test_shares_make_the_whole(command, tmp_path):
    written = []
    for share in ("0/2", "1/2"):
        code, out, _ = command("extract", "demo:digits", "--cache", tmp_path, *VIT, *SMALL, "--shard", share, "--json")
        written.append(json.loads(out.splitlines()[-1])["units"])
        assert (code, written[-1] > 0) == (0, True)
    assert sum(written) == 6  # three images of each split, spread over it: a unit each
    assert Cache.open(tmp_path).stores()[0].arrays[0].ledger.listed == 6


def test_a_file_says_what_options_say_and_options_overrule_it(command, tmp_path):
    file = tmp_path / "extract.yaml"
    cache = tmp_path / "c"
    values = {
        "source": "demo:digits",
        "cache": str(tmp_path / "elsewhere"),
        "backbones": [{"name": "test_vit", "weights": "random:0", "taps": "last", "image_px": 32}],
        "kinds": ["mean"],
        "dtype": "float32",
        "range": "0..255",
        "background": "grey",
        "limit": 3,
        "unit_images": 4,
    }
    file.write_text(yaml.safe_dump(values))
    code, out, _ = command("extract", "--config", file, "--cache", cache, "--limit", "5", "--range", "0..1", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["images"] == 5
    assert not (tmp_path / "elsewhere").exists()
    (store,) = Cache.open(cache).stores()
    assert store.info.recipe["input"]["range"] == "0..1"
    assert store.info.recipe["input"]["background"] == "#808080"
    (array,) = store.arrays
    assert (array.kind, array.layout.dtype.name, array.ledger.listed) == ("mean", "float32", 5)
    code, _, _ = command("extract", "--config", file, "--cache", cache, "--kinds", "prefix,mean", "--dtype", "float16")
    kinds = {(a.kind, a.layout.dtype.name) for s in Cache.open(cache).stores() for a in s.arrays}
    assert (code, kinds) == (0, {("mean", "float32"), ("mean", "float16"), ("prefix", "float16")})


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"bachbones": []}, ["unknown key 'bachbones'", "did you mean backbones"]),
        ({"backbones": [{"name": "a", "tap": "last"}]}, ["unknown key 'tap'", "did you mean taps"]),
        ({"limit": 0}, ["limit: input should be greater than 0 (got 0)"]),
        ({"kinds": ["grids"]}, ["kinds.0: input should be 'grid', 'prefix' or 'mean' (got 'grids')"]),
        ({"cache": None}, ["cache: "]),
    ],
)
def test_mistakes_in_a_file(command, tmp_path, values, parts):
    file = tmp_path / "extract.yaml"
    whole = {"source": "demo:digits", "cache": str(tmp_path / "c"), "backbones": [{"name": "test_vit"}]}
    file.write_text(yaml.safe_dump(whole | values))
    what, *remedy = parts
    assert_error(command("extract", "--config", file), 2, what, str(file), *remedy)


@pytest.mark.parametrize("text", [None, "- a\n- b\n", "a: [b\n", "!!python/object/apply:os.system [ls]\n"])
def test_a_file_that_cannot_be_read(command, tmp_path, text):
    file = tmp_path / "extract.yaml"
    if text is not None:
        file.write_text(text)
    assert_error(command("extract", "--config", file), 1, "cannot read the configuration", str(file))


@pytest.mark.parametrize("name", ["extract", "plan"])
@pytest.mark.parametrize("missing", ["SOURCE", "--cache DIR", "--backbone NAME"])
def test_what_is_missing_is_named_as_it_is_typed(command, tmp_path, name, missing):
    words = {
        "SOURCE": ["demo:digits"],
        "--cache DIR": ["--cache", tmp_path / "c"],
        "--backbone NAME": ["--backbone", "test_vit"],
    }
    args = [word for option, part in words.items() if option != missing for word in part]
    assert_error(command(name, *args), 2, f"'{missing}' is missing", f"loffta {name}", f"give {missing}")


def test_a_misspelt_key_in_a_file_explains_the_missing_option(command, tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({"source": "demo:digits", "cache": "c", "backbone": [{"name": "a"}]}))
    assert_error(command("extract", "--config", file), 2, "unknown key 'backbone'", "did you mean backbones")
    file.write_text(yaml.safe_dump({"source": "demo:digits", "cache": "c"}))
    assert_error(command("extract", "--config", file), 2, "'--backbone NAME' is missing", str(file))


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (["demo:digit", *VIT], 2, ["unknown demo image set 'digit'", "did you mean digits?"]),
        (["digits", *VIT], 2, ["'digits' does not say", "demo:digits"]),
        (["demo:digits", "--backbone", "test_vitt"], 2, ["unknown backbone 'test_vitt'", "did you mean test_vit"]),
        (["demo:digits", *VIT, "--taps", "blocks.01"], 2, ["unknown tap 'blocks.01'", "did you mean blocks."]),
        (["demo:digits", *VIT, "--taps", "lst"], 2, ["unknown tap 'lst'", "did you mean last"]),
        (["demo:digits", *VIT, "--kinds", "grid,men"], 2, ["kinds.1", "(got 'men')"]),
        (["demo:digits", *VIT, "--device", "cuda:77"], 2, ["device 'cuda:77' cannot be used", "use auto, cpu"]),
        (["demo:digits", *VIT, "--batch-size", "0"], 2, ["batch_size", "(got '0')"]),
        (
            ["demo:digits", "--backbone", "test_vit", "--weights", "package:no_such_weights"],
            1,
            ["no package 'no_such_weights' is installed", "check its spelling and where it comes from"],
        ),
        (
            ["demo:digits", "--backbone", "test_vit", "--weights", "w.pth"],
            1,
            ["no such weights file", "w.pth", "check the path"],
        ),
        (["demo:digits", "--backbone", "test_vit", "--weights", "random:x"], 2, ["no usable seed", "random:0"]),
        (
            ["demo:digits", "--backbone", "test_vit", "--weights", "random:0", "--image-px", "9"],
            2,
            ["9 px", "--image-px 16"],
        ),
    ],
)
def test_mistakes_are_one_message(command, tmp_path, args, code, parts):
    assert_error(command("extract", *args, "--cache", tmp_path / "cache"), code, *parts)
    assert list(tmp_path.glob("cache/stores/*")) == []


def test_hub_weights_without_network(command, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = command("extract", "demo:digits", "--cache", tmp_path / "c", "--backbone", "test_vit")
    assert_error(
        result, 1, "cannot fetch the weights of test_vit", "hub file timm/test_vit", "loffta fetch test_vit", "random:0"
    )


def test_another_unit_size_is_refused(command, cache):
    result = command("extract", "demo:digits", "--cache", cache, *VIT, "--unit-images", "8")
    assert_error(result, 2, "--unit-images 8, but this cache was made with 4", "leave the option out, or give 4")


def test_a_folder_with_something_else(command, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    result = command("extract", "demo:digits", "--cache", tmp_path, *VIT)
    assert_error(result, 1, "this folder holds something else", str(tmp_path), "choose an empty or new folder")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_summary_and_json(command, tmp_path):
    args = ["extract", "demo:digits", "--cache", tmp_path, *VIT, "--taps", "all", *SMALL, "--json"]
    code, out, err = command(*args)
    assert code == 0
    assert err == f"{describe(torch.device('cpu'))}\n"
    *text, line = out.splitlines()
    report = json.loads(line, parse_constant=pytest.fail)
    assert report["images"] == 6
    assert report["units"] == 6  # three images of each split, spread over it
    assert report["bad"] == 0
    assert report["seconds"] > 0
    (store,) = report["stores"]
    (held,) = Cache.open(tmp_path).stores()
    assert store["store"] == held.name
    assert store["label"] == "test_vit [random:0 weights]"
    assert store["taps"] == list(held.stored_taps())
    assert store["bytes"] == sum(p.stat().st_size for a in held.arrays for p in a.paths.folder.glob("c.*"))
    assert text[0].startswith(f"test_vit [random:0 weights]: {len(store['taps'])} taps, ")
    assert text[0].endswith(f" kB, store {held.name}")
    assert text[1].startswith("6 units, 6 images in ")
    assert text[1].endswith(" s; 0 bad images in the cache")
    code, out, err = command(*args)
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == "nothing to do; 0 bad images in the cache"
    assert json.loads(out.splitlines()[-1])["units"] == 0


QUITS = """
from tests.fakes import FakeBackbone

def quit(backbone):
    if len(backbone.batches) == 6:  # the check of its tokens took two
        raise SystemExit(0)

def network(weights, image_px, device):
    return FakeBackbone(before=quit)
"""


def test_a_network_that_ends_the_process_is_an_error(command, tmp_path, monkeypatch):
    """Its code 0 would say that all is there; what it had finished is kept and whole."""
    (tmp_path / "quits.py").write_text(QUITS)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--image-px", "native", "--batch-size", "16", "--unit-images", "32")
    words = ("extract", "demo:digits", "--cache", tmp_path / "c", "--backbone", "custom:quits:network", *options)
    code, out, err = command(*words)
    assert (code, out) == (1, "")
    assert "ended the process: SystemExit(0)\n" in err
    assert f"  where:  {tmp_path / 'quits.py'}, line 6\n" in err
    code, out, _ = command("info", tmp_path / "c", "--json")
    assert (code, json.loads(out.splitlines()[-1])["stores"][0]["units_done"]) == (0, 1)
    assert not list(tmp_path.rglob("*.part"))


def paint(folder, split, name, numbers):
    """PNGs of one class: `dark`, `light` or, half and half, `both`."""
    (folder / split / name).mkdir(parents=True, exist_ok=True)
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 40, size=(14, 18, 3), dtype=np.uint8)
        pixels[:, {"dark": 18, "light": 0, "both": 9}[name] :] += 200
        Image.fromarray(pixels).save(folder / split / name / f"{i:03d}.png")


def features(root):
    """Tokens of the last tap by key, [n, N, D]."""
    cache = Cache.open(root)
    array = cache.stores()[0].find("grid", "blocks.5")
    return dict(zip(cache.table.keys, open_array(array.paths).read(np.arange(len(cache.table))), strict=True))


def test_a_folder_that_grows_is_extracted_trained_on_and_evaluated(command, tmp_path):
    folder, root, run = tmp_path / "images", tmp_path / "cache", tmp_path / "run"
    for name in ("dark", "light"):
        paint(folder, "training", name, range(9))
        paint(folder, "test", name, range(20, 22))
    call = ["extract", folder, "--cache", root, *VIT, "--kinds", "grid", "--unit-images", "4", "--device", "cpu"]
    code, out, err = command(*call, "--json")
    assert (code, json.loads(out.splitlines()[-1])["images"]) == (0, 22)
    assert "read as <split>/<class>/... (training is train); images: test 4, train 18; classes: 2\n" in err
    code, out, _ = command("extract", f"folder:{folder}", *call[2:])
    assert (code, "nothing to do; 0 bad images" in out) == (0, True)
    before = {p: p.stat().st_mtime_ns for p in root.glob("stores/*/*/c.*")}
    first, old = features(root), Cache.open(root).table
    assert len(before) == 6

    paint(folder, "training", "both", range(9))  # its images come behind the old ones, its name before theirs
    paint(folder, "test", "both", range(20, 22))
    paint(folder, "training", "dark", range(9, 11))
    code, out, _ = command(*call, "--json")
    report = json.loads(out.splitlines()[-1])
    assert (code, report["units"], report["images"]) == (0, 4, 15)  # the part-filled unit whole, and three new ones
    table = Cache.open(root).table
    assert table.keys[:22] == old.keys
    assert table.keys[22:] == sorted(set(table.keys) - set(old.keys))
    assert table.classes == ("both", "dark", "light")
    assert [table.class_name(i) for i in range(35)] == [key.split("/")[1] for key in table.keys]
    assert [p.stat().st_mtime_ns == t for p, t in sorted(before.items())] == [True] * 5 + [False]
    grown = features(root)
    assert all(np.array_equal(grown[key], value) for key, value in first.items())
    assert len(grown) == 35

    training = ["--head", "linear", "--out", run, "--device", "cpu", "--set", "epochs=30"]
    assert command("train", root, *training)[0] == 0
    assert command("evaluate", run, "--split", "test")[0] == 0
    results = json.loads(RunPaths(run).results("test").read_text())
    assert (results["n"], results["metrics"]["top1"]["mean"]) == (6, 1.0)  # dark, light and half of each: an easy set

    (folder / "training" / "dark" / "000.png").unlink()
    code, _, err = command(*call)
    assert code == 1
    assert "error: the image set changed: training/dark/000.png: gone\n" in err
    assert "remedy: bring the old images back (new ones may be added)" in err


def test_an_image_of_a_folder_that_is_no_image(command, tmp_path):
    folder = tmp_path / "images"
    paint(folder, "a", "dark", range(3))
    (folder / "a" / "dark" / "empty.png").touch()
    call = ["extract", folder, "--cache", tmp_path / "cache", *VIT, "--device", "cpu"]
    result = command(*call)
    assert result[0] == 3
    assert "empty file" in result[2]
    assert command(*call, "--max-bad-frac", "0.5")[0] == 0


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (
            "nowhere",
            ["'nowhere' does not say what kind of image set it is, and is no folder", "SOURCE", "demo, folder, hf"],
        ),
        ("folder:nowhere", ["there is no folder 'nowhere'", "SOURCE folder:nowhere", "give the path of a folder"]),
        ("nowhere.csv", ["there is no file 'nowhere.csv'", "SOURCE table:nowhere.csv", "give the path of a file"]),
        ("vtab:nowhere", ["there is no folder 'nowhere'", "SOURCE vtab:nowhere", "give the path of a folder"]),
        (".", ["no images in this folder", "SOURCE folder:", "write a table"]),
    ],
)
def test_no_such_image_set(command, tmp_path, monkeypatch, source, parts):
    monkeypatch.chdir(tmp_path)
    assert_error(command("extract", source, "--cache", "c", *VIT), 2, *parts)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("n_images", "of", "said"), [(193, ["0/3", "1/3"], "193 images have no"), (1, ["0/3"], "1 image has no")]
)
def test_an_idle_share_says_whose_images_are_missing(monkeypatch, capsys, n_images, of, said):
    monkeypatch.setattr("loffta.extraction.extract.run", lambda *_: Report(unwritten_images=n_images, unwritten_of=of))
    words = ["extract", "demo:digits", "--cache", "c", "--backbone", "test_vit", "--shard", "2/3"]
    assert main(words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"{said} features yet: they are those of --shard {', '.join(of)}"
