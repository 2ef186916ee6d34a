"""`hf:PATH` and `hf:NAME`: what the package datasets wrote is listed without decoding; the hub is never needed here."""

import builtins

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loffta.errors import LofftaError, UsageError
from loffta.images.sources import open_source
from tests.imagesets import encoded, hugging_face, put


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What load_dataset converts lands in the test's folder; the hub is out of reach at once, without retries."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def save(root, rows, **features):
    """A Dataset of one split by save_to_disk; `image` is its column of images."""
    features = datasets.Features({"image": datasets.Image(), **features})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(root / "one")
    return f"hf:{root}/one"


def row(i, **cells):
    return {"image": {"bytes": encoded(i), "path": None}, **cells}


def problems(spec):
    with pytest.raises(UsageError) as caught:
        open_source(spec).listing()
    return caught.value.what


def test_a_saved_dictionary_of_splits(tmp_path):
    source = open_source(hugging_face(tmp_path))
    table = source.listing()
    assert table.keys == ["train/00000000", "train/00000001", "train/00000002", "validation/00000000"]
    assert table.splits == ["train"] * 3 + ["val"]
    assert (table.classes, table.labels.tolist()) == (("cat", "dog"), [0, 1, 1, 0])
    assert [source.read(key) for key in table.keys] == [encoded(i, "JPEG") for i in range(4)]  # untouched
    assert table.sizes.tolist() == [len(encoded(i, "JPEG")) for i in range(4)]
    assert table.source == f"hf:{tmp_path}/saved"


def test_rows_in_another_order_than_they_are_stored(tmp_path):
    """`select` and `shuffle` leave the rows where they are and keep indices."""
    rows = [row(i, label=i) for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_list(rows, features=features).select([3, 1]).save_to_disk(tmp_path / "two")
    source = open_source(f"hf:{tmp_path}/two")
    table = source.listing()
    assert [table.class_name(i) for i in range(2)] == ["3", "1"]
    assert [source.read(key) for key in table.keys] == [encoded(3), encoded(1)]
    assert table.sizes.tolist() == [len(encoded(3)), len(encoded(1))]


@pytest.mark.parametrize(
    ("feature", "labels", "kind", "expected"),
    [
        (datasets.ClassLabel(names=["b", "a"]), [1, -1, 0], "single-label", ["a", None, "b"]),
        (datasets.Value("string"), ["x", None, "y"], "single-label", ["x", None, "y"]),
        (datasets.Value("int32"), [10, None, 9], "single-label", ["10", None, "9"]),
        (datasets.Value("float32"), [1.0, None, -2.0], "regression", [1.0, None, -2.0]),
        (
            datasets.List(datasets.ClassLabel(names=["b", "a"])),
            [[1, 0], [], None],
            "multi-label",
            [("b", "a"), (), None],
        ),
        (datasets.List(datasets.Value("string")), [["y", "x"], [], None], "multi-label", [("x", "y"), (), None]),
    ],
)
def test_kinds_of_labels(tmp_path, feature, labels, kind, expected):
    rows = [row(i, label=label) for i, label in enumerate(labels)]
    table = open_source(save(tmp_path, rows, label=feature)).listing()
    assert table.label_kind == kind
    found = {
        "single-label": lambda: [table.class_name(i) for i in range(3)],
        "multi-label": lambda: [table.class_names(i) for i in range(3)],
        "regression": lambda: [None if value != value else value for value in table.values.tolist()],
    }[kind]()
    assert found == expected


def test_the_column_of_labels_is_chosen(tmp_path, capsys):
    fine, coarse = datasets.ClassLabel(names=["rose", "pine"]), datasets.ClassLabel(names=["plant"])
    spec = save(
        tmp_path, [row(0, coarse=0, label=1, note="n")], coarse=coarse, label=fine, note=datasets.Value("string")
    )
    assert open_source(spec).listing().class_name(0) == "pine"
    assert "the labels are those of label; others: coarse (choose: #COLUMN)\n" in capsys.readouterr().err
    assert open_source(f"{spec}#coarse").listing().class_name(0) == "plant"
    assert open_source(f"{spec}#note").listing().class_name(0) == "n"
    assert problems(f"{spec}#corse") == "unknown column 'corse'"
    assert problems(f"{spec}#image") == "the column image holds Image, not labels"
    assert open_source(save(tmp_path / "b", [row(0)])).listing().classes == ()


def test_the_column_of_images_is_chosen(tmp_path, capsys):
    image = {"bytes": encoded(0), "path": None}
    spec = save(tmp_path, [{"image": image, "label": image}], label=datasets.Image())  # a mask, as ADE20K has
    table = open_source(spec).listing()
    assert table.classes == ()
    assert "the images are those of image, not of label\n" in capsys.readouterr().err
    assert table.targets == {"mask": ["mask/train/00000000"]}
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    datasets.Dataset.from_list([{"a": image, "b": image}], features=features).save_to_disk(tmp_path / "two")
    assert problems(f"hf:{tmp_path}/two") == "the data set has several columns of images: a, b; its columns: a, b"
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(tmp_path / "none")
    assert problems(f"hf:{tmp_path}/none") == "the data set has no column of images; its columns: text"


def test_a_split_with_other_columns(tmp_path):
    parts = {"train": [row(0, label="a")], "test": [{"picture": row(1)["image"]}]}
    columns = {
        "train": {"image": datasets.Image(), "label": datasets.Value("string")},
        "test": {"picture": datasets.Image()},
    }
    made = {n: datasets.Dataset.from_list(r, features=datasets.Features(columns[n])) for n, r in parts.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    assert problems(f"hf:{tmp_path}/saved") == "the split test has no column of images image, as others have"
    made["test"] = made["test"].rename_column("picture", "image")
    datasets.DatasetDict(made).save_to_disk(tmp_path / "hidden")  # a test set whose labels are kept back
    table = open_source(f"hf:{tmp_path}/hidden").listing()
    assert [table.class_name(i) for i in range(2)] == ["a", None]


def test_a_parquet_file_and_a_folder_of_them(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    made = datasets.Dataset.from_list([row(i, label=i % 2) for i in range(3)], features=features)
    (tmp_path / "data").mkdir()
    made.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    made.select([2]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    source = open_source(f"hf:{tmp_path}/data/train-00000-of-00001.parquet")
    table = source.listing()
    assert (table.labels.tolist(), table.classes) == ([0, 1, 0], ("cat", "dog"))
    assert [source.read(key) for key in table.keys] == [encoded(i) for i in range(3)]
    assert open_source(f"hf:{tmp_path}/data").listing().split_sizes() == {"train": 3, "test": 1}


def test_a_folder_of_images(tmp_path):
    for i, name in enumerate(("train/cat/a.png", "train/dog/b.png", "test/cat/c.png")):
        put(tmp_path / "pets" / name, encoded(i))
    source = open_source(f"hf:{tmp_path}/pets")
    table = source.listing()
    assert (table.split_sizes(), table.classes) == ({"train": 2, "test": 1}, ("cat", "dog"))
    assert [source.read(key) for key in table.keys] == [encoded(i) for i in range(3)]
    assert table.sizes.tolist() == [len(encoded(i)) for i in range(3)]


def test_paths_that_lead_out_are_refused(tmp_path):
    put(tmp_path / "secret.png", encoded(1))
    saved = tmp_path / "one"
    rows = [{"path": str(tmp_path / "secret.png"), "bytes": None}, {"path": "none.png", "bytes": None}]
    pictures = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = datasets.Features({"image": datasets.Image()})
    saved.mkdir()
    table = pa.table({"image": pictures}, schema=features.arrow_schema)
    pq.write_table(table, saved / "train.parquet")
    what = problems(f"hf:{saved}")
    assert what == (
        f"2 problems in the image set: train/00000000: '{tmp_path}/secret.png': it lies outside the data set; "
        "train/00000001: 'none.png': No such file or directory"
    )


def test_rows_without_an_image_are_left_to_be_set_aside(tmp_path):
    source = open_source(
        save(tmp_path, [row(0, label="a"), {"image": None, "label": "b"}], label=datasets.Value("string"))
    )
    table = source.listing()
    assert table.sizes.tolist() == [len(encoded(0)), 0]
    with pytest.raises(OSError, match="the row has no image"):
        source.read(table.keys[1])


@pytest.mark.parametrize("key", ["train/00000004", "test/00000000", "train", "train/-0000001", "../train/0"])
def test_keys_that_are_not_there(tmp_path, key):
    with pytest.raises(FileNotFoundError, match=f"there is no '{key}'"):
        open_source(hugging_face(tmp_path)).read(key)


def test_labels_that_cannot_be_used(tmp_path):
    spec = save(tmp_path, [row(0, label=0.5), row(1, label=float("inf"))], label=datasets.Value("float64"))
    assert problems(spec).startswith("1 problem in the image set: train/00000001: 'inf' is no number")
    spec = save(tmp_path / "b", [row(0, label=0)], label=datasets.ClassLabel(names=["a\nb"]))
    assert problems(spec).startswith("1 problem in the image set: the class 'a\\nb': it holds a control character")


def test_an_empty_set(tmp_path):
    datasets.DatasetDict({}).save_to_disk(tmp_path / "one")
    assert problems(f"hf:{tmp_path}/one") == "the data set has no rows"


def test_a_name_that_the_cache_does_not_have(tmp_path):
    with pytest.raises(LofftaError) as caught:
        open_source("hf:someone/pets:small images").listing()
    error = caught.value
    assert error.what.startswith("the data set is not in the cache of the package datasets and cannot be had (")
    assert (error.where, error.exit_code) == (f"{tmp_path}/hf-cache (HF_HOME moves it)", 1)
    assert "on a node with a network, with the same HF_HOME, run\n      python -c " in error.remedy
    assert "from datasets import load_dataset; load_dataset(" in error.remedy
    assert "someone/pets" in error.remedy
    assert "small images" in error.remedy


def test_a_damaged_folder(tmp_path):
    hugging_face(tmp_path)
    put(tmp_path / "saved" / "dataset_dict.json", "{")
    with pytest.raises(
        LofftaError, match=r"the package datasets cannot load this folder or file \(.*\)\n.*\n  remedy: give"
    ):
        open_source(f"hf:{tmp_path}/saved").listing()


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", ""])
def test_no_such_folder(name):
    with pytest.raises(UsageError, match=r"there is no folder|the path of the folder is missing"):
        open_source(f"hf:{name}")


def test_without_the_package(tmp_path, monkeypatch):
    spec = hugging_face(tmp_path)
    imported = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LofftaError) as caught:
        open_source(spec).listing()
    assert (caught.value.what, caught.value.remedy) == (
        f"{spec} needs the package datasets",
        "pip install 'loffta[hf]'",
    )


def test_whole_numbers_of_a_column_value_are_numbers_to_learn(tmp_path):
    spec = save(tmp_path, [row(0, value=3), row(1, value=5)], value=datasets.Value("int64"))
    assert open_source(spec).listing().values.tolist() == [3.0, 5.0]
