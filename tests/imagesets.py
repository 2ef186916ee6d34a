"""Tiny image sets in the layouts that the real archives have; every picture is random noise of its own.

Each builder fills a folder and returns the SOURCE that names it.
"""

import hashlib
import io
import json
import tarfile

import numpy as np
from PIL import Image

from loffta.images.decode import open_image

VOC_XML = """<annotation><filename>{name}.jpg</filename><size><width>8</width></size>{objects}</annotation>"""
VOC_OBJECT = "<object><name>{name}</name><difficult>0</difficult><part><name>head</name></part></object>"


def pixels(seed, size=(8, 6)):
    """[H, W, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def decode(data):
    return open_image(data).decode()


def encoded(seed, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, kind)
    return buffer.getvalue()


def class_map(seed, n_classes=3):
    """A PNG of [8, 6] numbers below n_classes, and one pixel to ignore: a mask or instances."""
    numbers = np.random.default_rng(seed).integers(0, n_classes, (8, 6), dtype=np.uint8)
    numbers[0, 0] = 255
    buffer = io.BytesIO()
    Image.fromarray(numbers).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def voc(root):
    """VOCdevkit/VOC2012: 2 train, 1 val, 1 test without annotation; the first two have masks."""
    year = root / "VOCdevkit" / "VOC2012"
    objects = {"2007_000001": ["dog", "person", "dog"], "2007_000002": [], "2008_000003": ["cat"]}
    for i, name in enumerate([*objects, "2008_000004"]):
        put(year / "JPEGImages" / f"{name}.jpg", encoded(i, "JPEG"))
    for name, found in objects.items():
        parts = "".join(VOC_OBJECT.format(name=o) for o in found)
        put(year / "Annotations" / f"{name}.xml", VOC_XML.format(name=name, objects=parts))
    for name in ("2007_000001", "2007_000002"):
        for folder in ("SegmentationClass", "SegmentationObject"):
            put(year / folder / f"{name}.png", class_map(9))
    main, segmentation = year / "ImageSets" / "Main", year / "ImageSets" / "Segmentation"
    put(main / "train.txt", "2007_000001\n2008_000003\n")
    put(main / "val.txt", "2007_000002\n")
    put(main / "trainval.txt", "2007_000001\n2007_000002\n2008_000003\n")
    put(main / "test.txt", "2008_000004\n")
    put(main / "dog_train.txt", "2007_000001  1\n2008_000003 -1\n")
    put(segmentation / "train.txt", "2007_000001\r\n")
    put(segmentation / "val.txt", "2007_000002\n\n")
    return f"voc:{root}/VOCdevkit"


def coco_annotations(images, pairs, categories=((1, "person"), (3, "car"), (18, "dog"))):
    polygon = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    return {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": name, "height": 8, "width": 6, "license": 1} for i, name in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "segmentation": polygon, "bbox": [0, 0, 1, 1], "iscrowd": n % 2}
            for n, (i, c) in enumerate(pairs)
        ],
        "categories": [{"id": i, "name": name, "supercategory": "thing"} for i, name in categories],
    }


def coco(root, year="2017"):
    """3 train (one without objects), 1 val, 1 test."""
    train = [(9, "000000000009.jpg"), (7, "000000000007.jpg"), (8, "000000000008.jpg")]
    val = [(139, "000000000139.jpg")]
    for split, images in (("train", train), ("val", val), ("test", [(1, "000000000001.jpg")])):
        for i, name in images:
            put(root / f"{split}{year}" / name, encoded(i, "JPEG"))
    folder = root / "annotations"
    put(folder / f"instances_train{year}.json", json.dumps(coco_annotations(train, [(9, 18), (9, 1), (9, 1), (8, 3)])))
    put(folder / f"instances_val{year}.json", json.dumps(coco_annotations(val, [(139, 18)])))
    put(root / "stuffthingmaps" / f"val{year}" / "000000000139.png", class_map(3))
    return f"coco:{root}"


def nyu(root, *, n=5, splits=True):
    """MATLAB's axes are the reverse of HDF5's: [n, 3, W, H] and [n, W, H]."""
    import h5py

    path = root / "nyu_depth_v2_labeled.mat"
    images = np.stack([pixels(i).transpose(2, 1, 0) for i in range(n)])
    with h5py.File(path, "w", userblock_size=512) as file:  # MATLAB writes 512 bytes before the HDF5 signature
        file["images"] = images
        file["depths"] = np.arange(n * 6 * 8, dtype=np.float32).reshape(n, 6, 8) / 10
    if splits:
        from scipy.io import savemat

        numbers = np.arange(1, n + 1, dtype=np.uint16)
        savemat(root / "splits.mat", {"trainNdxs": numbers[:3, None], "testNdxs": numbers[3:, None]})
    return f"nyu:{path}"


def flowers(root, monkeypatch):
    """Flowers102 as torchvision keeps it: jpg/image_00001.jpg ..., labels and splits in MATLAB's format."""
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    for i in range(1, 8):
        put(folder / "jpg" / f"image_{i:05d}.jpg", encoded(i, "JPEG"))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[3, 1, 2, 1, 3, 2, 2]], dtype=np.uint8)})
    savemat(folder / "setid.mat", {"trnid": [[6, 1]], "valid": [[2, 7]], "tstid": [[3, 4, 5]]})
    names = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    put(folder / names["image"], b"")  # the archive stays where it was unpacked
    sums = {key: (name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for key, name in names.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", sums)  # torchvision compares the sums of the real files
    return folder


def mnist(root):
    """FashionMNIST in the idx format."""
    folder = root / "FashionMNIST" / "raw"
    for part, n in (("train", 4), ("t10k", 2)):
        images = np.stack([np.full((28, 28), 10 * i, dtype=np.uint8) for i in range(n)])
        header = b"\x00\x00\x08\x03" + b"".join(int(size).to_bytes(4, "big") for size in images.shape)
        put(folder / f"{part}-images-idx3-ubyte", header + images.tobytes())
        labels = bytes(i % 3 for i in range(n))
        put(folder / f"{part}-labels-idx1-ubyte", b"\x00\x00\x08\x01" + n.to_bytes(4, "big") + labels)
    return f"torchvision:FashionMNIST@{root}"


def hugging_face(root, labels=None, feature=None):
    """A DatasetDict of two splits by save_to_disk, with encoded bytes inside."""
    import datasets

    feature = feature or datasets.ClassLabel(names=["cat", "dog"])
    labels = labels or [0, 1, 1, 0]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = [{"image": {"bytes": encoded(i, "JPEG"), "path": None}, "label": label} for i, label in enumerate(labels)]
    parts = {"train": rows[:3], "validation": rows[3:]}
    found = {name: datasets.Dataset.from_list(part, features=features) for name, part in parts.items()}
    datasets.DatasetDict(found).save_to_disk(root / "saved")
    return f"hf:{root}/saved"


def tar(path, members, *, mode="w"):
    """A tar file of (name, bytes) or TarInfo members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def wds(root):
    """Two shards of train and one of test, as webdataset's writer makes them."""
    for shard, first, n in (("train-000000", 0, 2), ("train-000001", 2, 1), ("test-000000", 3, 2)):
        members = []
        for i in range(first, first + n):
            members += [(f"s{i:04d}.jpg", encoded(i, "JPEG")), (f"s{i:04d}.cls", str(i % 2).encode())]
            members.append((f"s{i:04d}.json", b'{"caption": "none"}'))
        tar(root / f"{shard}.tar", members)
    return f"wds:{root}/{{train,test}}-*.tar"


def folder(root):
    for i, name in enumerate(("train/cat/a.png", "train/dog/<b>&.png", "test/cat/c.png")):
        put(root / name, encoded(i))
    return f"folder:{root}"


def table(root):
    for i in range(3):
        put(root / f"{i}.png", encoded(i))
        put(root / "masks" / f"{i}.png", class_map(i))
    boxes = '"[[1, 2, 3, 4, ""dog""], [0, 0, 6, 8, ""cat"", true]]"'
    rows = f"0.png,0.5,masks/0.png,masks/1.png,\n1.png,,,,{boxes}\n2.png,2,masks/1.png,,[]\n"
    put(root / "t.csv", f"image,value,mask,instances,boxes\n{rows}")
    return f"table:{root}/t.csv"


def vtab(root):
    for i, split in enumerate(("train800", "val200", "test")):
        put(root / "dtd" / "images" / split / "0.jpg", encoded(i, "JPEG"))
        put(root / "dtd" / f"{split}.txt", f"images/{split}/0.jpg {i}\n")
    return f"vtab:{root}/dtd"


def demo(root):
    return "demo:digits"


def scenes(root):
    return "demo:scenes#px=32,n=13"


BUILDERS = {
    "coco": (coco, "multi-label"),
    "demo": (demo, "single-label"),
    "folder": (folder, "single-label"),
    "hf": (hugging_face, "single-label"),
    "nyu": (nyu, "single-label"),
    "table": (table, "regression"),
    "torchvision": (mnist, "single-label"),
    "voc": (voc, "multi-label"),
    "vtab": (vtab, "single-label"),
    "wds": (wds, "single-label"),
}
MORE = {"scenes": (scenes, "single-label")}  # of kinds that are there already
