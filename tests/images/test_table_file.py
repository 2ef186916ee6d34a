"""`table:FILE`: CSV and parquet say the same; what is wrong is told at once, and hostile paths lead nowhere."""

import datetime
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loffta.errors import UsageError
from loffta.images.sources import open_source, with_options
from loffta.images.targets import decode_target

KEYS = ["a.png", "sub/b.png", "c d.png", "é,1.png"]


@pytest.fixture
def folder(tmp_path):
    """Four files whose bytes are their own names."""
    (tmp_path / "sub").mkdir()
    for key in KEYS:
        (tmp_path / key).write_bytes(key.encode())
    return tmp_path


def csv_of(folder, text):
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return open_source(f"table:{folder}/t.csv")


def parquet_of(folder, **columns):
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return open_source(f"table:{folder}/t.parquet")


def rows_of(cells):
    return "".join(f'"{key}",{cell}\n' for key, cell in zip(KEYS, cells, strict=True))


def listed(source):
    table = source.listing()
    return [(key, table.splits[i], table.class_name(i)) for i, key in enumerate(table.keys)]


def problems(source, exit_code=2):
    with pytest.raises(UsageError) as caught:
        source.listing()
    assert caught.value.exit_code == exit_code
    assert caught.value.where == f"SOURCE {source._source}"
    return caught.value.what


def test_csv_and_parquet_say_the_same(folder, capsys):
    text = (
        '\ufeffimage, label,split\na.png,dog,train\n./sub//b.png,cat,Training\n\nc d.png,,dev\n"é,1.png",dog,fold-1\n'
    )
    source = csv_of(folder, text)
    table = source.listing()
    assert listed(source) == [
        ("a.png", "train", "dog"),
        ("sub/b.png", "train", "cat"),
        ("c d.png", "val", None),
        ("é,1.png", "fold-1", "dog"),
    ]
    assert table.classes == ("cat", "dog")
    assert table.labels.tolist() == [1, 0, -1, 1]
    assert table.sizes.tolist() == [5, 9, 7, 8]
    assert table.source == f"table:{folder}/t.csv"
    assert [source.read(key).decode() for key in table.keys] == table.keys
    assert f"table:{folder}/t.csv: splits: Training is train, dev is val\n" in capsys.readouterr().err
    labels = pa.array(["dog", "cat", None, "dog"]).dictionary_encode()
    twin = parquet_of(folder, image=KEYS, label=labels, split=["train", "train", "val", "fold-1"])
    assert twin.listing().digest == table.digest


def test_without_splits_all_is_train(folder):
    assert listed(csv_of(folder, "label,image\nx,a.png\n")) == [("a.png", "train", "x")]


@pytest.mark.parametrize(
    ("labels", "classes", "places"),
    [
        (["10", "9", "9", "100"], ("9", "10", "100"), [1, 0, 0, 2]),
        (["1.0", "", "0.0", "1"], ("0", "1"), [1, -1, 0, 1]),
        (["007", "7", "7", "x"], ("007", "7", "x"), [0, 1, 1, 2]),
        (["a", "B", "10", "9"], ("9", "10", "B", "a"), [3, 2, 1, 0]),
        (["", "", "", ""], (), [-1, -1, -1, -1]),
        (["nan", "inf", "1.5", "x"], ("1.5", "inf", "x"), [-1, 1, 0, 2]),
    ],
)
def test_labels_of_a_csv(folder, labels, classes, places):
    lines = [f'"{key}",{label}' for key, label in zip(KEYS, labels, strict=True)]
    table = csv_of(folder, "\n".join(["image,label", *lines])).listing()
    assert (table.classes, table.labels.tolist()) == (classes, places)


@pytest.mark.parametrize(
    ("labels", "classes", "places"),
    [
        ([10, 9, None, 100], ("9", "10", "100"), [1, 0, -1, 2]),
        ([1.0, 0.0, math.nan, None], ("0", "1"), [1, 0, -1, -1]),
        ([True, False, True, None], ("False", "True"), [1, 0, 1, -1]),
        ([None, None, None, None], (), [-1, -1, -1, -1]),
        ([datetime.date(2020, 1, 2)] * 4, ("2020-01-02",), [0, 0, 0, 0]),
    ],
)
def test_labels_of_a_parquet(folder, labels, classes, places):
    table = parquet_of(folder, image=pa.array(KEYS, pa.large_string()), label=labels).listing()
    assert (table.classes, table.labels.tolist()) == (classes, places)


def test_other_columns_are_ignored_aloud(folder, capsys):
    csv_of(folder, "image,label,note,score\na.png,x,m.png,3\n").listing()
    parquet_of(folder, image=["a.png"], label=["x"], note=[{"bytes": b"m"}]).listing()
    assert capsys.readouterr().err.splitlines() == [
        f"table:{folder}/t.csv: ignored columns: 'note', 'score'",
        f"table:{folder}/t.parquet: ignored columns: 'note'",
    ]


def test_boxes_in_cells_and_in_files(folder):
    (folder / "b.json").write_text('[[0, 0, 2, 2, "cat"], [1, 1, 3, 3, "ant", true]]')
    cells = ['"[[1, 2, 3, 4, ""dog""]]"', "./b.json", "", "[]"]
    source = csv_of(folder, "image,label,boxes\n" + "".join(f'"{k}",x,{c}\n' for k, c in zip(KEYS, cells, strict=True)))
    table = source.listing()
    assert table.targets["boxes"] == ['[[1, 2, 3, 4, "dog"]]', "b.json", None, "[]"]
    assert table.target_classes == {"boxes": ("ant", "cat", "dog")}
    found = [
        decode_target("boxes", source.read(key), classes=table.target_classes["boxes"], size=(9, 9)).boxes
        for key in table.targets["boxes"]
        if key
    ]
    assert [boxes.classes.tolist() for boxes in found] == [[2], [1, 0], []]
    assert found[1].crowd.tolist() == [False, True]
    again = parquet_of(folder, image=KEYS, label=["x"] * 4, boxes=table.targets["boxes"]).listing()
    assert (again.targets, again.target_classes) == (table.targets, table.target_classes)


def test_boxes_by_number(folder):
    table = csv_of(folder, 'image,label,boxes\na.png,x,"[[0,0,1,1,3],[0,0,1,1,0]]"\n').listing()
    assert table.target_classes == {"boxes": ("0", "1", "2", "3")}


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (["[[1, 2, 3]]"], "row 1: the boxes: box 1 is [1, 2, 3], not [left, top, right, bottom, class, crowd or nothi"),
        (["[[1,"], "row 1: the boxes: boxes are JSON: "),
        (["none.json"], "row 1: the boxes 'none.json': there is no such file"),
        (["/etc/passwd"], "row 1: the boxes '/etc/passwd': the path is absolute"),
        (['[[0, 0, 1, 1, "a"]]', "[[0, 0, 1, 1, 2]]"], "row 2: the boxes: class 2 is a number, but others are names"),
        (["[[0, 0, 1, 1, 70000]]"], "row 1: the boxes: class 70000, over 65534"),
        (['[[0, 0, 1, 1, ""]]'], "row 1: the boxes: '' cannot be a class: it is empty"),
        (['[[0, 0, 1, 1, "a\\u001b"]]'], "row 1: the boxes: 'a\\x1b' cannot be a class: "),
    ],
)
def test_boxes_that_cannot_be_used(folder, cells, what):
    source = parquet_of(folder, image=KEYS[: len(cells)], label=["x"] * len(cells), boxes=cells)
    assert problems(source).startswith(f"1 problem in the image set: {what}")


def test_boxes_of_another_type(folder):
    source = parquet_of(folder, image=["a.png"], label=["x"], boxes=[[[0.0, 0.0, 1.0, 1.0, 0.0]]])
    with pytest.raises(UsageError, match=r"(?s)the column boxes holds list<.*not paths.*a cell of boxes may be JSON: "):
        source.listing()


@pytest.mark.parametrize(
    ("header", "cells", "kind"),
    [("label", ["0.5", "", "-3", "1e2"], "regression"), ("value", ["3", "", "-3.0", "1"], "regression")],
)
def test_numbers_to_learn(folder, header, cells, kind):
    table = csv_of(folder, f"image,{header}\n" + rows_of(cells)).listing()
    assert (table.label_kind, table.classes, table.labels.tolist()) == (kind, (), [-1] * 4)
    assert table.values is not None
    assert [None if math.isnan(v) else v for v in table.values] == [float(c) if c else None for c in cells]
    numbers = [float(c) if c else None for c in cells]
    assert parquet_of(folder, image=KEYS, **{header: numbers}).listing().digest == table.digest


def test_whole_numbers_are_classes_under_label_and_numbers_under_value(folder):
    assert csv_of(folder, "image,label\na.png,31\n").listing().label_kind == "single-label"
    assert csv_of(folder, "image,value\na.png,31\n").listing().values.tolist() == [31.0]


def test_several_classes_per_image(folder):
    """An empty cell is an image of unknown classes, a lone semicolon one with none of them."""
    cells = ["dog; cat", "", ";", "cat;cat"]
    table = csv_of(folder, "image,labels\n" + rows_of(cells)).listing()
    assert (table.label_kind, table.classes) == ("multi-label", ("cat", "dog"))
    assert table.label_sets == [(0, 1), None, (), (0,)]
    assert table.labels.tolist() == [-1] * 4
    lists = [["dog", "cat"], None, [], ["cat", "cat"]]
    for header in ("labels", "label"):  # a list says itself that it is one
        assert parquet_of(folder, image=KEYS, **{header: lists}).listing().digest == table.digest
    numbers = parquet_of(folder, image=KEYS, labels=[[10, 9], [], [100], [9]]).listing()
    assert (numbers.classes, numbers.label_sets) == (("9", "10", "100"), [(0, 1), (), (2,), (0,)])


def test_paths_of_targets_are_kept(folder):
    (folder / "m").mkdir()
    for name in ("a", "b"):
        (folder / "m" / f"{name}.png").write_bytes(name.encode())
    source = csv_of(folder, "image,label,mask,depth\na.png,x,./m//a.png,\nc d.png,x,,\nsub/b.png,y,m/b.png,\n")
    table = source.listing()
    assert table.targets == {"mask": ["m/a.png", None, "m/b.png"]}  # no image has a depth
    assert source.read("m/a.png") == b"a"
    twin = parquet_of(folder, image=table.keys, label=["x", "x", "y"], mask=["m/a.png", None, "m/b.png"])
    assert twin.listing().digest == table.digest


def test_targets_that_cannot_be_used(folder):
    (folder.parent / "secret.png").write_bytes(b"s")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    lines = ["a.png,../secret.png", "c d.png,link.png", "sub/b.png,none.png"]
    assert problems(csv_of(folder, "\n".join(["image,label,mask", *(line.replace(",", ",x,") for line in lines)]))) == (
        "3 problems in the image set: row 1: the mask '../secret.png': the path holds '..'; "
        "row 2: the mask 'link.png': it leaves the image set's folder; "
        "row 3: the mask 'none.png': there is no such file"
    )


def test_all_that_is_wrong_at_once(folder):
    (folder.parent / "secret.png").write_bytes(b"s")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    bad = ["../secret.png", "/etc/passwd", '"a\nb.png"', "link.png", "a.png", "./a.png", "", "none.png", "sub"]
    lines = "".join(f"{path},x\n" for path in bad)
    what = problems(csv_of(folder, "image,label\n" + lines))
    assert what == (
        "8 problems in the image set: row 1: '../secret.png': the path holds '..'; "
        "row 2: '/etc/passwd': the path is absolute; "
        "row 3: 'a\\nb.png': the path holds a control character or is not UTF-8; "
        "row 4: 'link.png': it leaves the image set's folder; "
        "row 6: './a.png': listed before, in row 5 and 3 more"
    )
    what = problems(parquet_of(folder, image=[None, "none.png", "sub"], label=["x"] * 3))
    assert what == (
        "3 problems in the image set: row 1: '': the path is empty; row 2: 'none.png': there is no such file; "
        "row 3: 'sub': it is no regular file"
    )


def test_bytes_never_come_from_outside(folder):
    source = csv_of(folder, "image,label\na.png,x\n")
    source.listing()
    (folder.parent / "secret.png").write_bytes(b"s")
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(OSError, match="it leaves the image set's folder"):
        source.read("a.png")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the table has no column image and no column label; it has: none"),
        ("path,label\n", "the table has no column image; it has: 'path', 'label'"),
        ("image|label\n", "the table has no column image and no column label; it has: 'image|label'"),
        ("image,label,label\n", "the table has two columns label; it has: 'image', 'label', 'label'"),
        ("image,label\n", "the table has no rows"),
        (
            "image,label\na.png\na.png,x,y\n",
            "2 problems in the image set: row 1: 1 cells under 2 columns; row 2: 3",
        ),
        ('image,label\n"a.png,x\n', "cannot read the table (Error: unexpected end of data)"),
        ("image,label\na.png,\x1b[2J\n", "1 problem in the image set: row 1: the label '\\x1b[2J': it holds a control"),
        ("image,label\na.png,-1\n", "1 problem in the image set: row 1: the label -1 is negative; an image without a"),
        (
            "image,label\na.png,0.5\nsub/b.png,inf\n",
            "1 problem in the image set: row 2: 'inf' is no number; an image without one has an empty cell",
        ),
        ("image,value\na.png,cat\n", "1 problem in the image set: row 1: 'cat' is no number; an image without one"),
        ("image,value\na.png,31 years\n", "1 problem in the image set: row 1: '31 years' is no number"),
        ("image,value\na.png,inf\n", "1 problem in the image set: row 1: 'inf' is no number"),
        (
            'image,label\na.png,"[1, 2]"\n',
            "1 problem in the image set: row 1: several labels in one text ('[1, 2]'): write a column labels",
        ),
        (
            "image,labels\na.png,\x1b[2J;-1\n",
            "2 problems in the image set: row 1: the label '\\x1b[2J': it holds a control character or is not UTF-8; "
            "row 1: the label -1 is negative",
        ),
        (
            "image,label,value\na.png,x,1\n",
            "the table has the columns label and value, but an image set has one kind of label",
        ),
        ("image,label,split\na.png,x,\n", "1 problem in the image set: row 1: the split is empty"),
        ("image,label,split\na.png,x,a+b\n", "1 problem in the image set: row 1: the split cannot be 'a+b'"),
    ],
)
def test_refused_csv(folder, text, what):
    assert problems(csv_of(folder, text)).startswith(what)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"image": ["a.png"], "tag": ["x"]}, "the table has no column label; it has: 'image', 'tag'"),
        ({"image": [b"png"], "label": ["x"]}, "the column image holds binary, not paths"),
        ({"image": [{"bytes": b"png"}], "label": ["x"]}, "the column image holds struct<bytes: binary>, not paths"),
        (
            {"image": ["a.png"], "label": ["x"], "mask": [{"b": b"m"}]},
            "the column mask holds struct<b: binary>, not pat",
        ),
        ({"image": ["a.png"], "value": [math.inf]}, "1 problem in the image set: row 1: 'inf' is no number"),
    ],
)
def test_refused_parquet(folder, columns, what):
    assert problems(parquet_of(folder, **columns)).startswith(what)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_damaged_file(folder, name):
    (folder / name).write_bytes(b"\xff\xfe\x00\x01" * 10)
    assert problems(open_source(f"table:{folder}/{name}")).startswith("cannot read the table (")


def test_no_table(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file '.*t\.csv'\n  where:  SOURCE table:.*\n  remedy: give"):
        open_source(f"table:{tmp_path}/t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"'t\.xlsx' is neither \.csv, \.tsv nor \.parquet\n.*\n  remedy: save"):
        open_source(f"table:{tmp_path}/t.xlsx")


@pytest.fixture
def elsewhere(tmp_path):
    """Images in one folder, a table in another; each row names its image in one of the usual ways."""
    root, mine = tmp_path / "shared", tmp_path / "me" / "csv"
    for name in ("a/0.png", "a/1.png", "b/2.png", "b/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    mine.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (mine / "t.csv").write_text(
        f"image,label,mask\na/0.png,a,{root}/a/1.png\n{root}/a/1.png,a,\n../../shared/b/2.png,b,\n./b/../b/3.png,b,\n"
    )
    return root, mine


def test_images_below_a_root_that_the_user_named(elsewhere):
    root, mine = elsewhere
    source = open_source(with_options(f"{mine}/t.csv", image_root=str(root)))
    with pytest.raises(UsageError, match=r"1 problem in the image set: row 4: './b/../b/3.png': the path holds '\.\.'"):
        source.listing()  # from the table's folder it leads nowhere near the root
    text = (mine / "t.csv").read_text()
    (mine / "t.csv").write_text(text.replace("./b/../b/3.png", f"{root}/a/../b/3.png"))
    table = source.listing()
    assert table.keys == ["a/0.png", "a/1.png", "b/2.png", "b/3.png"]
    assert [source.read(key).decode() for key in table.keys] == table.keys
    assert table.targets == {"mask": ["a/1.png", None, None, None]}
    assert table.source == f"table:{mine}/t.csv#root={root}"
    assert open_source(table.source).listing().digest == table.digest


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../secret.png", "{root}/../secret.png", "{root}", "out/secret.png"]
)
def test_what_leaves_the_named_root_stays_refused(elsewhere, path):
    root, mine = elsewhere
    (root / "out").symlink_to(root.parent)
    (mine / "t.csv").write_text(f"image,label\n{path.format(root=root)},a\n")
    with pytest.raises(UsageError, match=r"is absolute|holds '\.\.'|leaves the image set|no regular file|no such file"):
        open_source(f"table:{mine}/t.csv#root={root}").listing()


def test_links_of_a_table_are_followed_where_the_user_says_so(elsewhere, capsys):
    root, mine = elsewhere
    (mine / "images").symlink_to(root)
    (mine / "t.csv").write_text("image,label\nimages/a/0.png,a\nimages/b/2.png,b\n")
    with pytest.raises(UsageError, match="it leaves the image set's folder") as caught:
        open_source(f"{mine}/t.csv").listing()
    assert "--image-root DIR" in caught.value.remedy
    assert "--follow-links" in caught.value.remedy
    source = open_source(f"{mine}/t.csv#follow-links")
    assert source.read(source.listing().keys[1]) == b"b/2.png"
    assert f"files behind links that lead out: 2, in '{root}/a', '{root}/b'\n" in capsys.readouterr().err


def test_no_such_root(elsewhere):
    with pytest.raises(UsageError, match="there is no folder 'nowhere'"):
        open_source(f"table:{elsewhere[1]}/t.csv#root=nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\na.png,cat\n", ""),
        ("\n \r\nimage,label\na.png,cat\n\n", ""),
        ("image;label\na.png;cat\n", "the cells are separated by semicolons"),
        ('\ufeff"label"; "image"; note\n"cat";a.png; "x, y"\n', "the cells are separated by semicolons"),
        ("image\tlabel\na.png\tcat\n", "the cells are separated by tabs"),
        ("note;a,image,label\nx;y,a.png,cat\n", "ignored columns: 'note;a'"),
    ],
)
def test_what_separates_cells_is_seen_from_the_header(folder, text, said, capsys):
    assert listed(csv_of(folder, text)) == [("a.png", "train", "cat")]
    assert said in capsys.readouterr().err
    (folder / "t.tsv").write_text("image\tlabel\na.png\tcat, dog\n")
    assert listed(open_source(f"{folder}/t.tsv")) == [("a.png", "train", "cat, dog")]


def test_semicolons_between_cells_and_in_them(folder):
    table = csv_of(folder, 'image;labels;split\na.png;"cat;dog";Training\nsub/b.png;;val\n').listing()
    assert (table.classes, table.label_sets, table.splits) == (("cat", "dog"), [(0, 1), None], ["train", "val"])
    assert problems(csv_of(folder, "image;labels\na.png;cat;dog\n")).startswith(
        "1 problem in the image set: row 1: 3 cells"
    )
    assert problems(csv_of(folder, "image;label\na.png;1,5\n")).startswith(
        "1 problem in the image set: row 1: the label 1,5: write a number with a point"
    )


def test_binary_columns_are_text(folder, capsys):
    table = parquet_of(folder, image=KEYS, label=[b"dog", b"cat", None, b"nan"], split=[b"train"] * 4).listing()
    assert (table.classes, table.labels.tolist(), set(table.splits)) == (("cat", "dog"), [1, 0, -1, -1], {"train"})
    assert "labels that mean nothing: 'nan' 1; these images have no label" in capsys.readouterr().err
    assert problems(parquet_of(folder, image=KEYS, label=["a"] * 4, split=[b"\xff", "", "nan", "x"])).startswith(
        "4 problems in the image set: row 1: the bytes b'\\xff' are no text in UTF-8; row 1: the split is empty; "
        "images without one are a split, too: `unlabelled`; row 2: the split is empty"
    )
