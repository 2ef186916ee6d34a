"""Image sets as a user meets them at the command line: kinds of labels, growth, and exit codes of what is refused."""

import io
import json
import signal

import datasets
import pytest
from loffta_cli.main import main
from PIL import Image

from loffta.store.cache import Cache
from tests.imagesets import BUILDERS, coco, encoded, hugging_face, mnist, put, tar, voc

VIT = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def own_process(monkeypatch, tmp_path):
    """`extract` takes over the signals of its process, which here is pytest's; and no process here loses power."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def command(capsys):
    def call(*args):
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.mark.parametrize("name", ["voc", "table", "torchvision"])
def test_info_tells_the_kind_of_labels(command, tmp_path, name):
    build, kind = BUILDERS[name]
    spec = build(tmp_path)
    assert command("extract", spec, "--cache", tmp_path / "c", *VIT)[0] == 0
    code, out, _ = command("info", tmp_path / "c", "--json")
    held = json.loads(out.splitlines()[-1])
    assert (code, held["label_kind"]) == (0, kind)
    assert f"{held['classes']} classes, {kind}, 0 bad\n" in out


@pytest.mark.parametrize("name", ["voc", "table"])
def test_a_head_for_classes_refuses_other_labels(command, tmp_path, name):
    build, kind = BUILDERS[name]
    assert command("extract", build(tmp_path), "--cache", tmp_path / "c", *VIT)[0] == 0
    words = ["train", tmp_path / "c", "--head", "linear", "--out", tmp_path / "run", "--test-on", "train"]
    code, _, err = command(*words, "--task", "classification")
    assert code == 1
    assert f"error: the labels of this image set are {kind}, and classification needs one class per image\n" in err
    assert f"remedy: leave --task out, which chooses {kind}" in err


def test_a_set_of_several_classes_grows(command, tmp_path):
    """A new image with a class that sorts before the old ones: old rows and finished units stay."""
    for i in range(3):
        put(tmp_path / f"{i}.png", encoded(i))
    call = ["extract", tmp_path / "t.csv", "--cache", tmp_path / "c", *VIT, "--unit-images", "2", "--json"]
    put(tmp_path / "t.csv", "image,labels,mask\n0.png,dog;cat,2.png\n1.png,,\n")
    assert command(*call)[0] == 0
    put(tmp_path / "t.csv", "image,labels,mask\n2.png,bird;cat,0.png\n0.png,dog;cat,2.png\n1.png,,\n")
    code, out, _ = command(*call)
    assert (code, json.loads(out.splitlines()[-1])["units"]) == (0, 1)
    table = Cache.open(tmp_path / "c").table
    assert (table.keys, table.classes) == (["0.png", "1.png", "2.png"], ("bird", "cat", "dog"))
    assert table.label_sets == [(1, 2), None, (0, 1)]
    assert table.targets == {"mask": ["2.png", None, "0.png"]}
    put(tmp_path / "t.csv", "image,labels,mask\n2.png,bird;cat,0.png\n0.png,dog;cat,1.png\n1.png,dog,\n")
    code, _, err = command(*call)
    assert code == 0
    assert "of the 3 old images classes of 1 and mask of 1 differ: the features are untouched" in err
    table = Cache.open(tmp_path / "c").table
    assert (table.label_sets, table.targets["mask"]) == ([(1, 2), (2,), (0, 1)], ["1.png", None, "0.png"])


def broken_voc(root):
    voc(root)
    put(root / "VOCdevkit/VOC2012/Annotations/2007_000001.xml", "<annotation>")
    return f"voc:{root}"


def broken_coco(root):
    coco(root)
    put(root / "annotations/instances_train2017.json", "{")
    return f"coco:{root}"


def broken_nyu(root):
    put(root / "nyu_depth_v2_labeled.mat", b"x" * 600)
    return f"nyu:{root}/nyu_depth_v2_labeled.mat"


def broken_torchvision(root):
    spec = mnist(root)
    put(root / "FashionMNIST/raw/train-labels-idx1-ubyte", b"")
    return spec


def broken_hf(root):
    spec = hugging_face(root)
    put(root / "saved/train/state.json", "{")
    return spec


def broken_wds(root):
    tar(root / "a.tar", [("../a.png", b"x")])
    return f"wds:{root}/a.tar"


@pytest.mark.parametrize(
    ("build", "code", "what"),
    [
        (broken_voc, 2, "1 problem in the image set: Annotations/2007_000001.xml: no element found"),
        (broken_coco, 2, "1 problem in the image set: instances_train2017.json is no file of COCO instances"),
        (broken_nyu, 2, "the file cannot be read as HDF5"),
        (broken_torchvision, 1, "torchvision does not find FashionMNIST, or not whole"),
        (broken_hf, 1, "the package datasets cannot load this folder or file"),
        (lambda root: "hf:someone/pets", 1, "the data set is not in the cache of the package datasets"),
        (broken_wds, 2, "1 problem in the image set: a.tar: '../a.png': the path holds '..'"),
    ],
)
def test_a_broken_set_is_one_message_and_makes_no_cache(command, tmp_path, build, code, what):
    found, out, err = command("extract", build(tmp_path / "set"), "--cache", tmp_path / "c", *VIT)
    assert (found, out) == (code, "")
    error = err[err.index("error: ") :]
    assert error.startswith(f"error: {what}")
    assert "\n  where:  " in error
    assert "\n  remedy: " in error
    assert not (tmp_path / "c").exists()


def pictures(root):
    """A folder as people have it: transparent, flat, animated, and two files that nothing here decodes."""
    for i in range(3):
        put(root / "a" / f"{i}.png", encoded(i))
    put(root / "b" / "flat.png", _encoded(Image.new("RGB", (9, 9), (1, 2, 3))))
    frames = [Image.new("L", (9, 9)).point(lambda _, i=i: i * 40) for i in range(4)]
    frames[0].paste(255, (0, 0, 4, 4))
    put(root / "b" / "moving.gif", _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    put(root / "b" / "phone.HEIC", b"\0\0\0\x18ftypheic")
    put(root / "b" / "notes.txt", b"x")
    return root


def _encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_one_line_tells_what_else_there_is_in_a_set(command, tmp_path):
    root, cache = pictures(tmp_path / "set"), tmp_path / "c"
    code, out, err = command("extract", root, "--cache", cache, *VIT, "--background", "#102030", "--json")
    line = "1 image is a single flat colour; 3 pages of 1 image ignored; 2 files not taken (1 .heic, 1 .txt)"
    assert code == 0, err
    assert out.splitlines()[-3] == line  # then what it cost, then JSON
    assert "not taken (no image that can be decoded here): 1 .heic, 1 .txt" in err
    found = json.loads(out.splitlines()[-1])
    expected = {"flat": 1, "pages_ignored": 3, "several_pages": 1, "not_taken": {".heic": 1, ".txt": 1}}
    assert {name: found[name] for name in expected} == expected
    code, out, _ = command("info", cache, "--json")
    assert out.splitlines()[1] == f"  {line}"
    held = json.loads(out.splitlines()[-1])
    assert {name: held[name] for name in expected} == expected
    assert held["look"] == {"background": "#102030", "range": "auto"}
    assert command("plan", root, "--cache", cache, *VIT, "--sample", "0")[0] == 0  # the cache's own look
    assert "unknown" not in command("extract", root, "--cache", cache, *VIT)[2]


def test_roots_and_links_that_the_user_opens(command, tmp_path):
    shared, mine = pictures(tmp_path / "shared"), tmp_path / "mine"
    put(mine / "t.csv", f"image,label\n{shared}/a/0.png,x\na/1.png,y\n")
    (mine / "links").mkdir()
    (mine / "links" / "a").symlink_to(shared / "a")
    (mine / "links" / "b").symlink_to(shared / "b")
    code, _, err = command("extract", mine / "t.csv", "--cache", tmp_path / "no", *VIT)
    assert code == 2
    assert "--image-root DIR" in err
    code, _, err = command(
        "extract", mine / "t.csv", "--image-root", shared, "--cache", tmp_path / "c", *VIT, "--kinds", "mean"
    )
    assert code == 0, err
    code, _, err = command("extract", mine / "links", "--follow-links", "--cache", tmp_path / "d", *VIT)
    assert code == 0, err
    assert "files behind links that lead out: 5" in err
    for cache in ("c", "d"):  # both are remembered
        code, out, err = command("verify", tmp_path / cache, "--images")
        assert code == 0, err
        assert "every image is the one that was extracted" in out


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--background", "transparent", "background: it must be white, black, grey or #rrggbb"),
        (
            "--range",
            "4095",
            "range: it must be auto, clip, or two numbers, the first below the second, for example 0..4095",
        ),
        ("--image-root", ".", "--image-root is for tables, not for demo"),
    ],
)
def test_mistakes_in_how_images_are_read(command, tmp_path, option, value, text):
    code, _, err = command("extract", "demo:digits", "--cache", tmp_path / "c", *VIT, option, value)
    assert code == 2
    assert text in err
