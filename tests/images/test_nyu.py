"""`nyu:FILE`: MATLAB's axes are turned, the split is the official one, and odd files are refused."""

import builtins
import io

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from loffta.errors import LofftaError, UsageError
from loffta.images.sources import open_source
from loffta.images.targets import decode_target
from tests.imagesets import nyu, pixels, put


def problems(spec):
    with pytest.raises(UsageError) as caught:
        open_source(spec).listing()
    return caught.value.what


def test_pictures_and_depths_stand_upright(tmp_path, capsys):
    source = open_source(nyu(tmp_path))
    table = source.listing()
    assert table.keys == ["0001.png", "0002.png", "0003.png", "0004.png", "0005.png"]
    assert table.splits == ["train"] * 3 + ["test"] * 2
    assert (table.labels.tolist(), table.classes, table.label_kind) == ([-1] * 5, (), "single-label")
    assert table.sizes.tolist() == [3 * 8 * 6] * 5
    assert table.targets == {"depth": [f"depths/000{i}.npy" for i in range(1, 6)]}
    for i, key in enumerate(table.keys):
        data = source.read(key)
        assert data.startswith(b"\x89PNG")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels(i))  # [8, 6, 3], as it was before
    depth = np.load(io.BytesIO(source.read("depths/0002.npy")), allow_pickle=False)
    assert (depth.shape, depth.dtype) == ((8, 6), np.float32)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", locking=False) as file:
        assert all(depth[y, x] == file["depths"][1, x, y] for y in range(8) for x in range(6))
    assert capsys.readouterr().err == ""


def test_depths_as_the_camera_saw_them(tmp_path):
    spec = nyu(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["rawDepths"] = np.where(np.arange(6 * 8).reshape(6, 8) % 5, file["depths"][:] + 1, 0).astype(np.float32)
        raw = file["rawDepths"][:]
    source = open_source(f"{spec}#raw")
    table = source.listing()
    assert (table.source, table.targets["depth"][4]) == (f"{spec}#raw", "rawDepths/0005.npy")
    native = decode_target("depth", source.read("rawDepths/0005.npy"), size=(8, 6))
    assert np.array_equal(native.map, raw[4].T)
    assert (native.map == 0).any()
    filled = decode_target("depth", open_source(spec).read("depths/0005.npy")).map
    assert filled[native.map > 0] == pytest.approx(native.map[native.map > 0] - 1)
    with pytest.raises(FileNotFoundError):
        source.read("depths/0001.npy")
    with pytest.raises(UsageError, match="unknown part of NYU Depth v2 'rawDepths'"):
        open_source(f"{spec}#rawDepths")


def test_without_a_split_all_is_train(tmp_path, capsys):
    table = open_source(nyu(tmp_path, splits=False)).listing()
    assert table.splits == ["train"] * 5
    assert "no splits.mat beside it, so all images are split train\n" in capsys.readouterr().err


def test_a_split_in_hdf5_and_under_its_other_name(tmp_path):
    spec = nyu(tmp_path, splits=False)
    with h5py.File(tmp_path / "nyu_splits.mat", "w") as file:
        file["trainNdxs"], file["testNdxs"] = [[5.0, 1.0]], [[2.0, 3.0, 4.0]]
    assert open_source(spec).listing().splits == ["train", "test", "test", "test", "train"]


@pytest.mark.parametrize(
    ("train", "test", "what"),
    [
        ([1, 2, 3], [4], "it does not name image 5"),
        ([1, 2, 3], [3, 4, 5], "it names image 3, twice"),
        ([0, 1, 2, 3], [4, 5], "it names image 0, but there are 5 images"),
        ([1, 2, 3], [4, 5, 6], "it names image 6, but there are 5 images"),
        (None, [4, 5], "it cannot be read (KeyError: 'trainNdxs')"),
    ],
)
def test_splits_that_cannot_be_used(tmp_path, train, test, what):
    spec = nyu(tmp_path, splits=False)
    savemat(tmp_path / "splits.mat", {"testNdxs": test} | ({"trainNdxs": train} if train else {}))
    assert problems(spec) == f"the split of NYU Depth v2 cannot be used: {what}"


def test_a_damaged_split(tmp_path):
    spec = nyu(tmp_path, splits=False)
    put(tmp_path / "splits.mat", b"rubbish" * 100)
    assert problems(spec).startswith("the split of NYU Depth v2 cannot be used: it cannot be read (")


def write(path, **data):
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file[name] = values
    return f"nyu:{path}"


GOOD = np.zeros((2, 3, 6, 8), np.uint8)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({}, "the file holds no dataset `images`"),
        ({"images": GOOD.astype(np.float32)}, "the file holds images [2, 3, 6, 8] float32, not [n, 3, W, H] uint8"),
        ({"images": GOOD[:, 0]}, "the file holds images [2, 6, 8] uint8, not"),
        ({"images": GOOD[:0]}, "the file holds images [0, 3, 6, 8] uint8, not"),
        ({"images": GOOD, "depths": GOOD[:1, 0]}, "the file holds depths [1, 6, 8] for images [2, 3, 6, 8]"),
        ({"images/x": GOOD}, "the file holds images or depths that lie in other files, or are none"),
        ({"images": h5py.SoftLink("/x"), "x": GOOD}, "the file holds links"),
    ],
)
def test_files_of_another_kind(tmp_path, data, what):
    assert problems(write(tmp_path / "f.mat", **data)).startswith(what)


def test_pixels_are_never_read_from_another_file(tmp_path):
    put(tmp_path / "secret", b"s" * 1000)
    write(tmp_path / "other.mat", images=GOOD)
    with h5py.File(tmp_path / "raw.mat", "w") as file:
        file.create_dataset("images", GOOD.shape, np.uint8, external=[(str(tmp_path / "secret"), 0, GOOD.size)])
    with h5py.File(tmp_path / "link.mat", "w") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "images")
    with h5py.File(tmp_path / "virtual.mat", "w") as file:
        layout = h5py.VirtualLayout(GOOD.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.mat"), "images", GOOD.shape)
        file.create_virtual_dataset("images", layout)
    lies_elsewhere = "the file holds images or depths that lie in other files, or are none"
    assert problems(f"nyu:{tmp_path}/raw.mat") == lies_elsewhere
    assert problems(f"nyu:{tmp_path}/virtual.mat") == lies_elsewhere
    assert problems(f"nyu:{tmp_path}/link.mat") == "the file holds links"


def test_a_file_without_raw_depths(tmp_path):
    assert problems(write(tmp_path / "f.mat", images=GOOD) + "#raw") == "the file holds no dataset `rawDepths`"


def test_no_hdf5(tmp_path):
    put(tmp_path / "f.mat", b"MATLAB 5.0 MAT-file" * 20)
    assert problems(f"nyu:{tmp_path}/f.mat").startswith("the file cannot be read as HDF5 (")


@pytest.mark.parametrize(
    "key", ["0000.png", "0006.png", "0001", "0001.npy", "depths/0001.png", "depths/0.npy", "x.png"]
)
def test_keys_that_are_not_there(tmp_path, key):
    source = open_source(nyu(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"there is no '{key}'"):
        source.read(key)


def test_without_h5py(tmp_path, monkeypatch):
    spec = nyu(tmp_path)
    imported = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "h5py":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LofftaError) as caught:
        open_source(spec).listing()
    assert (caught.value.what, caught.value.remedy) == (f"{spec} needs h5py", "pip install 'loffta[nyu]'")
