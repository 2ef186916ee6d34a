"""`vtab:ROOT/NAME` against a small dump written as NOAH's script does."""

import pytest

from loffta.errors import UsageError
from loffta.images.sources import open_source

SIZES = {"train800": 4, "val200": 3, "test": 5, "train800val200": 7}


def dump(root, lists=SIZES, n_classes=3):
    """ROOT/dtd; each image's bytes are its path."""
    task = root / "dtd"
    for name in lists:
        folder = task / "images" / name
        folder.mkdir(parents=True)
        lines = [f"images/{name}/{i:06d}.jpg {i % n_classes}" for i in range(SIZES[name])]
        for line in lines:
            (task / line.split()[0]).write_bytes(line.split()[0].encode())
        (task / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return task


def test_a_dump(tmp_path, capsys):
    task = dump(tmp_path)
    source = open_source(f"vtab:{tmp_path}/dtd")
    table = source.listing()
    assert table.keys == [
        *(f"images/train800/{i:06d}.jpg" for i in range(4)),
        *(f"images/val200/{i:06d}.jpg" for i in range(3)),
        *(f"images/test/{i:06d}.jpg" for i in range(5)),
    ]
    assert table.splits == ["train"] * 4 + ["val"] * 3 + ["test"] * 5
    assert table.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 0, 1]
    assert table.classes == ("0", "1", "2")
    assert table.sizes.tolist() == [len(key) for key in table.keys]
    assert table.rows_of("train+val").tolist() == list(range(7))  # what train800val200 holds copies of
    assert table.source == f"vtab:{task}"
    assert [source.read(key).decode() for key in table.keys] == table.keys
    assert capsys.readouterr().err == ""


def test_labels_that_do_not_occur_are_classes_too(tmp_path):
    task = dump(tmp_path, ["test"])
    (task / "test.txt").write_text("images/test/000000.jpg 5\r\n\r\n./images//test/000001.jpg\t0\r\n")
    table = open_source(f"vtab:{task}").listing()
    assert table.keys == ["images/test/000000.jpg", "images/test/000001.jpg"]
    assert (table.labels.tolist(), table.classes) == ([5, 0], ("0", "1", "2", "3", "4", "5"))


@pytest.mark.parametrize(
    ("lists", "splits", "note"),
    [
        (["train800", "val200"], {"train": 4, "val": 3}, "no test.txt, so no such split\n"),
        (["test"], {"test": 5}, "no train800.txt and no val200.txt, so no such split\n"),
        (
            ["train800val200", "test"],
            {"train": 7, "test": 5},
            "no train800.txt and val200.txt, so all of train800val200.txt is split train\n",
        ),
        (
            ["train800val200"],
            {"train": 7},
            "no train800.txt and val200.txt, so all of train800val200.txt is split train\n{source}no test.txt, "
            "so no such split\n",
        ),
    ],
)
def test_a_part_of_a_dump(tmp_path, capsys, lists, splits, note):
    task = dump(tmp_path, lists)
    assert open_source(f"vtab:{task}").listing().split_sizes() == splits
    source = f"vtab:{task}: "
    assert capsys.readouterr().err == source + note.format(source=source)


def test_all_that_is_wrong_at_once(tmp_path):
    task = dump(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(b"s")
    (task / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (task / "val200.txt").write_bytes(b"\xff\xfe")
    bad = [
        "images/test/000000.jpg cat",
        "../secret.jpg 0",
        f"{tmp_path}/secret.jpg 0",
        "link.jpg 0",
        "images/test/000000.jpg 1",
        "images/test/000000.jpg 2",
        "images/test/nothing.jpg 0",
        "images/test/000001.jpg 123456",
        "images/test 0",
    ]
    (task / "test.txt").write_text("\n".join(bad))
    with pytest.raises(UsageError) as caught:
        open_source(f"vtab:{task}").listing()
    what = caught.value.what
    assert what.startswith("9 problems in the image set: val200.txt cannot be read ('utf-8' codec")
    assert "test.txt line 1: 'images/test/000000.jpg cat' is not `relative_path label`" in what
    assert "test.txt line 2: '../secret.jpg': the path holds '..'" in what
    assert f"test.txt line 3: '{tmp_path}/secret.jpg': the path is absolute" in what
    assert "test.txt line 4: 'link.jpg': it leaves the image set's folder and 4 more" in what
    (task / "val200.txt").unlink()
    (task / "test.txt").write_text("\n".join(bad[4:]))
    with pytest.raises(UsageError) as caught:
        open_source(f"vtab:{task}").listing()
    assert caught.value.what == (
        "4 problems in the image set: test.txt line 2: 'images/test/000000.jpg': listed before, in test.txt line 1; "
        "test.txt line 3: 'images/test/nothing.jpg': there is no such file; "
        "test.txt line 4: 'images/test/000001.jpg 123456' is not `relative_path label`; "
        "test.txt line 5: 'images/test': it is no regular file"
    )
    assert caught.value.where == f"SOURCE vtab:{task}"
    assert caught.value.exit_code == 2


def test_no_dump(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no lists of a VTAB-1k dump in this folder\n.*\n  remedy: it needs train800"):
        open_source(f"vtab:{tmp_path}/empty").listing()
    (tmp_path / "empty" / "test.txt").write_text("\n")
    with pytest.raises(UsageError, match="the lists are empty"):
        open_source(f"vtab:{tmp_path}/empty").listing()


def test_a_misspelt_task_names_its_neighbour(tmp_path):
    dump(tmp_path)
    with pytest.raises(UsageError, match=r"unknown VTAB task 'dtdd'\n  where:  SOURCE vtab:.*\n  remedy: .*dtd\?"):
        open_source(f"vtab:{tmp_path}/dtdd")


def test_train_and_val_together_are_what_the_list_of_both_says(tmp_path):
    """train800val200 holds copies under other names; each image is listed once, whatever splits are joined."""
    task = dump(tmp_path)
    table = open_source(f"vtab:{task}").listing()
    both = (task / "train800val200.txt").read_text().splitlines()
    rows = table.rows_of("train+val")
    assert len(rows) == len(set(rows.tolist())) == len(both)
    assert not any("train800val200" in key for key in table.keys)
    assert table.rows_of("val+train+train").tolist() == rows.tolist()


def test_an_image_in_two_lists_is_refused(tmp_path):
    task = dump(tmp_path)
    (task / "val200.txt").write_text("images/train800/000001.jpg 1\n")
    with pytest.raises(UsageError) as caught:
        open_source(f"vtab:{task}").listing()
    assert caught.value.what == (
        "1 problem in the image set: val200.txt line 1: 'images/train800/000001.jpg': listed before, in train800.txt "
        "line 2"
    )
