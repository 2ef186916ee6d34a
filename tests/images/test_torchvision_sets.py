"""`torchvision:NAME@ROOT`: torchvision's own classes read files made here; nothing is downloaded."""

import hashlib
import inspect
import io
import pickle
import sys

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from loffta.errors import LofftaError, UsageError
from loffta.images.sources import open_source
from loffta.images.torchvision_sets import BY_TRAIN, KNOWN, SPLITS, arguments_of
from tests.imagesets import encoded, flowers, mnist, put


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_takes_the_arguments_of_its_splits(name):
    taken = inspect.signature(getattr(torchvision.datasets, name).__init__)
    for arguments in arguments_of(name).values():
        taken.bind(None, "root", **arguments)
    assert ("split" in taken.parameters) == (name in SPLITS)
    assert ("train" in taken.parameters) == (name in BY_TRAIN)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_not_there_is_told_with_the_command_that_fetches_it(name, tmp_path):
    """Each class is really called, so that a split it does not know would show: that is another error."""
    with pytest.raises(LofftaError) as caught:
        open_source(f"torchvision:{name}@{tmp_path}").listing()
    assert caught.value.what.startswith(f"torchvision does not find {name}, or not whole (")
    assert "Unknown value" not in caught.value.what
    assert caught.value.where == str(tmp_path)
    assert "python -c " in caught.value.remedy
    assert f"d.{name}(root=" in caught.value.remedy
    assert "download=True" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_files(tmp_path, monkeypatch):
    folder = flowers(tmp_path, monkeypatch)
    source = open_source(f"torchvision:Flowers102@{tmp_path}")
    table = source.listing()
    assert table.keys == [f"flowers-102/jpg/image_0000{i}.jpg" for i in (1, 6, 2, 7, 3, 4, 5)]
    assert table.splits == ["train"] * 2 + ["val"] * 2 + ["test"] * 3
    theirs = {}
    for split in ("train", "val", "test"):
        dataset = torchvision.datasets.Flowers102(tmp_path, split=split)
        theirs |= {path.name: (split, label) for path, label in zip(dataset._image_files, dataset._labels, strict=True)}
    names = [key.rpartition("/")[2] for key in table.keys]
    assert list(zip(table.splits, table.labels.tolist(), strict=True)) == [theirs[name] for name in names]
    classes = getattr(torchvision.datasets.Flowers102, "classes", None)
    assert table.classes == (tuple(classes) if classes else ("0", "1", "2"))
    for key, size in zip(table.keys, table.sizes.tolist(), strict=True):
        data = (folder.parent / key).read_bytes()  # untouched
        assert (source.read(key), size) == (data, len(data))


def test_a_folder_per_class(tmp_path):
    for i, name in enumerate(("AnnualCrop/a.jpg", "Forest/b.jpg", "Forest/c.jpg")):
        put(tmp_path / "eurosat" / "2750" / name, encoded(i, "JPEG"))
    table = open_source(f"torchvision:EuroSAT@{tmp_path}").listing()
    assert table.keys == [f"eurosat/2750/{name}" for name in ("AnnualCrop/a.jpg", "Forest/b.jpg", "Forest/c.jpg")]
    assert (table.splits, table.classes) == (["train"] * 3, ("AnnualCrop", "Forest"))
    assert table.labels.tolist() == [0, 1, 1]


def test_images_that_are_one_array(tmp_path):
    source = open_source(mnist(tmp_path))
    table = source.listing()
    assert table.keys == [*(f"train/0000{i}.png" for i in range(4)), "test/00000.png", "test/00001.png"]
    assert table.splits == ["train"] * 4 + ["test"] * 2
    assert table.classes == tuple(torchvision.datasets.FashionMNIST.classes)
    assert table.labels.tolist() == [0, 1, 2, 0, 0, 1]
    assert table.sizes.tolist() == [28 * 28] * 6
    for split, key, i in (("train", "train/00003.png", 3), ("test", "test/00001.png", 1)):
        theirs, _ = torchvision.datasets.FashionMNIST(tmp_path, train=split == "train")[i]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(key)))), np.asarray(theirs))


def test_colour_arrays_of_both_orders(tmp_path, monkeypatch):
    """CIFAR10 is [n, 32, 32, 3] in memory, STL10 [n, 3, 96, 96]."""
    rng = np.random.default_rng(0)
    files = {}
    for name in ("train", "test"):
        data = rng.integers(0, 256, (3, 3 * 32 * 32), dtype=np.uint8)
        files[name] = pickle.dumps({"data": data, "labels": [0, 1, 1]})
        put(tmp_path / "cifar-10-batches-py" / name, files[name])
    meta = pickle.dumps({"label_names": ["cat", "dog"]})
    put(tmp_path / "cifar-10-batches-py" / "meta", meta)
    cifar = torchvision.datasets.CIFAR10
    sums = {name: hashlib.md5(data).hexdigest() for name, data in {**files, "meta": meta}.items()}
    monkeypatch.setattr(cifar, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(cifar, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(cifar, "meta", {"filename": "meta", "key": "label_names", "md5": sums["meta"]})
    source = open_source(f"torchvision:CIFAR10@{tmp_path}")
    table = source.listing()
    assert (table.classes, table.labels.tolist()) == (("cat", "dog"), [0, 1, 1] * 2)
    theirs, _ = cifar(tmp_path, train=False)[2]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read("test/00002.png")))), np.asarray(theirs))

    stl, lists = torchvision.datasets.STL10, {}
    for name in ("train", "test"):
        pictures, labels = rng.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8), np.array([1, 2], dtype=np.uint8)
        for part, array in ((f"{name}_X.bin", pictures), (f"{name}_y.bin", labels)):
            put(tmp_path / "stl10_binary" / part, array.tobytes())
            lists.setdefault(name, []).append([part, hashlib.md5(array.tobytes()).hexdigest()])
    lists["train"].append(lists["train"][0])  # the file of unlabelled images, which we do not ask for
    monkeypatch.setattr(stl, "train_list", lists["train"])
    monkeypatch.setattr(stl, "test_list", lists["test"])
    put(tmp_path / "stl10_binary" / "class_names.txt", "airplane\nbird\n")
    source = open_source(f"torchvision:STL10@{tmp_path}")
    assert source.listing().classes == ("airplane", "bird")
    theirs, _ = stl(tmp_path, split="train")[1]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read("train/00001.png")))), np.asarray(theirs))


def test_classes_without_a_name_for_each_are_numbers(tmp_path, monkeypatch):
    flowers(tmp_path, monkeypatch)
    for classes in (["rose"], ["crane", "crane", "x"], ["a\nb", "c", "d"]):
        monkeypatch.setattr(torchvision.datasets.Flowers102, "classes", classes, raising=False)
        assert open_source(f"torchvision:Flowers102@{tmp_path}").listing().classes == ("0", "1", "2")
    monkeypatch.setattr(torchvision.datasets.Flowers102, "classes", [("a", "b"), ("c",), ("d",)], raising=False)
    assert open_source(f"torchvision:Flowers102@{tmp_path}").listing().classes == ("a, b", "c", "d")


def test_files_that_are_gone_or_lead_out(tmp_path, monkeypatch):
    root = tmp_path / "root"
    folder = flowers(root, monkeypatch)
    put(tmp_path / "secret.jpg", b"s")
    (folder / "jpg" / "image_00001.jpg").unlink()
    (folder / "jpg" / "image_00002.jpg").unlink()
    (folder / "jpg" / "image_00002.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UsageError) as caught:
        open_source(f"torchvision:Flowers102@{root}").listing()
    assert caught.value.what == (
        "2 problems in the image set: split train: 'flowers-102/jpg/image_00001.jpg': there is no such file; "
        "split val: 'flowers-102/jpg/image_00002.jpg': it leaves the image set's folder"
    )
    assert caught.value.remedy.startswith(
        "remove the data set and fetch it where there is a network:\n      python -c "
    )


def test_a_pickle_of_an_old_torchvision_is_not_loaded(tmp_path):
    spec = mnist(tmp_path)
    put(tmp_path / "FashionMNIST" / "processed" / "training.pt", b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        LofftaError, match=r"made by an old torchvision and holds pickles\n.*processed\n  remedy: remove"
    ):
        open_source(spec).listing()


def test_damaged_files(tmp_path):
    spec = mnist(tmp_path)
    put(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", b"\0\0\x08\x03")
    with pytest.raises(LofftaError, match=r"torchvision does not find FashionMNIST, or not whole \("):
        open_source(spec).listing()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("train/00004.png", "there is no 'train/00004.png'"),
        ("train/x.png", "there is no 'train/x.png'"),
        ("val/00000.png", "No such file"),
        ("../x.png", r"the path holds '\.\.'"),
    ],
)
def test_keys_that_are_not_there(tmp_path, key, reason):
    with pytest.raises(OSError, match=reason):
        open_source(mnist(tmp_path)).read(key)


def test_names_and_roots(tmp_path, monkeypatch):
    with pytest.raises(
        UsageError, match=r"unknown data set of torchvision 'CIFAR11'\n.*\n  remedy: did you mean CIFAR10"
    ):
        open_source(f"torchvision:CIFAR11@{tmp_path}")
    monkeypatch.delenv("LOFFTA_HOME", raising=False)
    with pytest.raises(
        UsageError, match=r"where torchvision keeps its data sets is not said\n.*\n.*DTD@FOLDER, or set"
    ):
        open_source("torchvision:DTD")
    monkeypatch.setenv("LOFFTA_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=f"there is no folder '{tmp_path}/torchvision'"):
        open_source("torchvision:FashionMNIST")
    mnist(tmp_path / "torchvision")
    assert len(open_source("torchvision:FashionMNIST").listing()) == 6


def test_a_package_that_torchvision_needs(tmp_path, monkeypatch):
    flowers(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(LofftaError) as caught:
        open_source(f"torchvision:Flowers102@{tmp_path}").listing()
    assert caught.value.what.startswith("torchvision cannot read Flowers102 (")
    assert caught.value.remedy == "pip install scipy"
