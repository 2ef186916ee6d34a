"""`folder:PATH`: layouts, names, links; what was understood is said, and nothing is opened."""

import builtins
import io
import os
import socket
import unicodedata

import pytest
from PIL import Image

from loffta.errors import LofftaError, UsageError
from loffta.images.endings import decodable
from loffta.images.files import FileRoot, OutsideRoot, key_fault, to_key
from loffta.images.folder import open_folder
from loffta.images.rgb import to_rgb
from loffta.images.sources import open_source, with_options
from loffta.look import Look
from loffta.store.table import ImageTable
from tests.imagesets import decode


def write(root, *names):
    """Files whose bytes are their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="surrogateescape"))


def rows(root):
    """(key, split, class) per row."""
    table = open_folder(str(root)).listing()
    assert table.sizes.tolist() == [(root / key).stat().st_size for key in table.keys]
    return [(key, table.splits[i], table.class_name(i)) for i, key in enumerate(table.keys)]


def test_a_folder_per_class(tmp_path, capsys):
    write(tmp_path, "dog/b.png", "cat/z.JPG", "dog/a.webp", "cat/more/y.tif", "cat/notes.txt", "cat/.x.png", ".h/a.png")
    source = open_folder(str(tmp_path))
    table = source.listing()
    assert table.keys == ["cat/more/y.tif", "cat/z.JPG", "dog/a.webp", "dog/b.png"]
    assert table.labels.tolist() == [0, 0, 1, 1]
    assert table.classes == ("cat", "dog")
    assert table.splits == ["train"] * 4
    assert table.sizes.tolist() == [14, 9, 10, 9]
    assert table.source == f"folder:{tmp_path}"
    assert [source.read(key).decode() for key in table.keys] == table.keys
    assert capsys.readouterr().err == (
        f"folder:{tmp_path}: not taken (no image that can be decoded here): 1 .txt\n"
        f"folder:{tmp_path}: read as <class>/...; images: train 4; classes: 2\n"
    )
    assert table.not_taken == {".txt": 1}


def test_split_folders_by_any_of_their_names(tmp_path, capsys):
    write(tmp_path, "Training/cat/1.png", "training/dog/1.png", "valid/cat/2.png", "dev/cat/3.png", "TESTING/eel/4.png")
    (tmp_path / "annotations").mkdir()
    write(tmp_path, "annotations/all.json")  # no images in it: no class and no split
    assert rows(tmp_path) == [
        ("TESTING/eel/4.png", "test", "eel"),
        ("Training/cat/1.png", "train", "cat"),
        ("dev/cat/3.png", "val", "cat"),
        ("training/dog/1.png", "train", "dog"),
        ("valid/cat/2.png", "val", "cat"),
    ]
    assert capsys.readouterr().err.endswith(
        "read as <split>/<class>/... (TESTING is test, Training is train, dev is val, training is train, valid is val)"
        "; images: test 1, train 2, val 2; classes: 3\n"
    )


def test_a_split_without_classes_has_no_labels(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png")
    assert rows(tmp_path) == [
        ("test/1.png", "test", None),
        ("test/2.png", "test", None),
        ("train/cat/1.png", "train", "cat"),
        ("train/dog/1.png", "train", "dog"),
    ]


def test_splits_alone(tmp_path, capsys):
    write(tmp_path, "train/1.png", "test/2.png")
    assert rows(tmp_path) == [("test/2.png", "test", None), ("train/1.png", "train", None)]
    assert "read as <split>/... without classes; images: test 1, train 1; classes: none" in capsys.readouterr().err


def test_a_flat_folder(tmp_path, capsys):
    write(tmp_path, "b.png", "a.png")
    table = open_folder(str(tmp_path)).listing()
    assert (table.keys, table.labels.tolist(), table.classes) == (["a.png", "b.png"], [-1, -1], ())
    assert table.splits == ["train", "train"]
    assert "read as images without classes; images: train 2; classes: none" in capsys.readouterr().err


def test_names_of_splits_beside_a_class_are_classes(tmp_path, capsys):
    write(tmp_path, "test/1.png", "cat/1.png")
    assert rows(tmp_path) == [("cat/1.png", "train", "cat"), ("test/1.png", "train", "test")]
    assert "<class>/... (test taken for classes: cat is no split)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "kept", "note"),
    [
        (["cat/1.png", "logo.png"], ["cat/1.png"], "skipped 1 (images beside the folders of classes): 'logo.png'"),
        (["train/1.png", "logo.png"], ["train/1.png"], "skipped 1 (images beside the folders of splits): 'logo.png'"),
        (
            ["train/c/1.png", *(f"train/{i}.png" for i in range(7))],
            ["train/c/1.png"],
            "skipped 7 (images beside the folders of classes): 'train/0.png', 'train/1.png', 'train/2.png', "
            "'train/3.png', 'train/4.png' and 2 more",
        ),
    ],
)
def test_images_beside_the_folders_that_count_are_skipped(tmp_path, capsys, names, kept, note):
    write(tmp_path, *names)
    assert open_folder(str(tmp_path)).listing().keys == kept
    assert note in capsys.readouterr().err


def test_links(tmp_path, capsys):
    outside, root = tmp_path / "outside", tmp_path / "root"
    write(outside, "a.png", "sub/b.png")
    write(root, "1.png")
    (root / "2.png").symlink_to("1.png")
    (root / "3.png").symlink_to(outside / "a.png")
    (root / "4.png").symlink_to("nowhere.png")
    (root / "5.png").symlink_to("5.png")
    (root / "sub").symlink_to(outside / "sub")
    (root / "round").symlink_to(root)
    source = open_folder(str(root))
    table = source.listing()
    assert table.keys == ["1.png", "2.png"]
    assert table.sizes.tolist() == [5, 5]
    assert source.read("2.png") == b"1.png"
    err = capsys.readouterr().err
    assert "skipped 3 (links that are broken or leave the folder): '" in err
    assert "skipped 2 (links to folders): '" in err
    linked = tmp_path / "link"
    linked.symlink_to(root)  # the root itself may be one
    assert open_folder(str(linked)).listing().digest == table.digest


def test_bytes_never_come_from_outside(tmp_path):
    outside, root = tmp_path / "outside.png", tmp_path / "root"
    write(tmp_path, "outside.png")
    write(root, "1.png", "sub/2.png")
    source = open_folder(str(root))
    source.listing()
    (root / "1.png").unlink()
    (root / "1.png").symlink_to(outside)  # exchanged since the listing
    with pytest.raises(OutsideRoot, match="it leaves the image set's folder"):
        source.read("1.png")
    with pytest.raises(OutsideRoot, match=r"the path holds '\.\.'"):
        source.read("sub/../../outside.png")
    with pytest.raises(OutsideRoot, match="the path is absolute"):
        source.read(str(outside))
    with pytest.raises(FileNotFoundError):
        source.read("3.png")
    with pytest.raises(OSError, match="it is no regular file"):
        source.read("sub")


def test_pipes_and_unfit_names_are_skipped(tmp_path, capsys):
    write(tmp_path, "good\N{NO-BREAK SPACE}é.png", "line\nend.png", "not-utf8-\udcff.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        assert open_folder(str(tmp_path)).listing().keys == ["good\N{NO-BREAK SPACE}é.png"]
    err = capsys.readouterr().err
    assert "skipped 2 (no regular files): '" in err
    assert "skipped 2 (names with control characters or not UTF-8): '" in err
    assert "'line\\nend.png'" in err


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("a/b c.png", None),
        ("..a/b..png", None),
        ("", "the path is empty"),
        ("/a.png", "the path is absolute"),
        ("a/../../b.png", "the path holds '..'"),
        ("..", "the path holds '..'"),
        ("a\nb.png", "the path holds a control character or is not UTF-8"),
        ("a\0.png", "the path holds a control character or is not UTF-8"),
        ("a\udcff.png", "the path holds a control character or is not UTF-8"),
    ],
)
def test_key_fault(key, fault, tmp_path):
    assert key_fault(key) == fault
    if fault:
        with pytest.raises(OutsideRoot, match=fault):
            FileRoot(tmp_path).locate(key)


def test_one_spelling():
    assert [to_key(p) for p in ("./a//b.png", "a/./b.png", "a/b.png")] == ["a/b.png"] * 3


@pytest.mark.parametrize("names", [[], ["a.txt", "b/c.npy", ".hidden.png"]])
def test_no_images(tmp_path, names):
    write(tmp_path, *names)
    with pytest.raises(UsageError, match=r"no images in this folder\n  where:  SOURCE folder:") as caught:
        open_source(f"folder:{tmp_path}").listing()
    assert caught.value.exit_code == 2
    assert ".jpeg" in caught.value.remedy
    assert ".png" in caught.value.remedy


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(LofftaError, match=r"cannot list the images \(Permission denied\)\n  where:  .*b\n"):
        open_folder(str(tmp_path)).listing()


@pytest.mark.parametrize("text", ["", "nowhere", "~/no-such-folder", "~nobody-at-all/x"])
def test_no_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what = f"there is no folder '{text}'" if text else "the path of the folder is missing"
    with pytest.raises(UsageError) as caught:
        open_source(f"folder:{text}")
    assert (caught.value.what, caught.value.where) == (what, f"SOURCE folder:{text}")
    assert caught.value.remedy == f"give the path of a folder; relative ones start at {tmp_path}"


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "set/1.png")
    assert open_source("folder:~/set").listing().source == f"folder:{tmp_path}/set"


def test_a_listing_opens_nothing(tmp_path, monkeypatch):
    names = [f"{'train' if i % 4 else 'test'}/{i % 10}/{i:05d}.png" for i in range(20_000)]
    for folder in {name.rpartition("/")[0] for name in names}:
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY))

    def refuse(*args, **kwargs):
        pytest.fail(f"opened {args}")

    with monkeypatch.context() as patch:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (Image, "open")):
            patch.setattr(module, name, refuse)
        table = open_folder(str(tmp_path)).listing()
    assert table.keys == sorted(names)
    assert table.split_sizes() == {"test": 5_000, "train": 15_000}
    assert table.classes == tuple("0123456789")
    assert table.labels.tolist() == [int(key.split("/")[1]) for key in table.keys]


@pytest.fixture
def shared(tmp_path):
    """A shared set of three classes, and a user's own folder of links to two of them."""
    write(tmp_path / "shared", "a/0.png", "a/1.png", "b/0.png", "c/0.png")
    mine = tmp_path / "mine"
    (mine / "b").mkdir(parents=True)
    (mine / "a").symlink_to(tmp_path / "shared" / "a")
    (mine / "b" / "x.png").symlink_to(tmp_path / "shared" / "b" / "0.png")
    write(mine, "b/own.png")
    return mine


def test_links_are_followed_where_the_user_says_so(shared, capsys):
    closed = open_source(str(shared)).listing()
    assert closed.keys == ["b/own.png"]
    source = open_source(with_options(str(shared), follow_links=True))
    table = source.listing()
    assert table.keys == ["a/0.png", "a/1.png", "b/own.png", "b/x.png"]
    assert table.classes == ("a", "b")
    assert [source.read(key) for key in table.keys] == [b"a/0.png", b"a/1.png", b"b/own.png", b"b/0.png"]
    assert table.source == f"folder:{shared}#follow-links"
    assert open_source(table.source).listing().digest == table.digest  # verify and repair open it again
    outside = shared.parent / "shared"
    said = f"folder:{shared}#follow-links: files behind links that lead out: 3, in '{outside}/a', '{outside}/b'\n"
    assert said in capsys.readouterr().err


def test_followed_links_never_lead_in_circles_or_twice(shared, capsys):
    (shared / "a2").symlink_to(shared.parent / "shared" / "a")  # a second name for what is listed
    (shared / "b" / "up").symlink_to(shared)
    (shared.parent / "shared" / "a" / "loop").symlink_to(shared.parent / "shared")
    table = open_source(f"{shared}#follow-links").listing()
    # the links of the root come first, by name; `loop` leads to the folder above `a`
    assert [key for key in table.keys if not key.startswith("a/loop/")] == [
        "a/0.png",
        "a/1.png",
        "b/own.png",
        "b/x.png",
    ]
    assert {key for key in table.keys if key.startswith("a/loop/")} == {"a/loop/b/0.png", "a/loop/c/0.png"}
    assert "(links to folders that are listed already): 'a/loop/a', 'a2', 'b/up'" in capsys.readouterr().err


def test_other_doors_stay_closed_though_links_are_followed(shared):
    os.mkfifo(shared.parent / "shared" / "pipe.png")
    (shared / "b" / "pipe.png").symlink_to(shared.parent / "shared" / "pipe.png")
    (shared / "b" / "gone.png").symlink_to("nowhere")
    source = open_source(f"folder:{shared}#follow-links")
    assert "b/pipe.png" not in source.listing().keys
    for key in ("../shared/c/0.png", str(shared / "b/own.png"), "b/pipe.png", "b/gone.png"):
        with pytest.raises(OSError, match=r"the path holds|is absolute|no regular file|No such file"):
            source.read(key)


def test_a_folder_that_is_called_so_is_a_folder(tmp_path):
    write(tmp_path, "set#follow-links/a.png")
    assert open_source(f"{tmp_path}/set#follow-links").listing().keys == ["a.png"]


def test_every_ending_that_pillow_decodes_is_taken_and_others_are_counted(tmp_path, capsys):
    write(
        tmp_path,
        "a.avif",
        "b.JXL",
        "c.heic",
        "d.jp2",
        "e.j2k",
        "f.qoi",
        "g.psd",
        "h.dcm",
        "i.npy",
        "j.heic",
        "noending",
    )
    write(tmp_path, "k.eps", "l.pdf", "m.h5", ".hidden.heic")
    table = open_folder(str(tmp_path)).listing()
    assert table.keys == ["a.avif", "d.jp2", "e.j2k", "f.qoi", "g.psd"]
    counts = {".heic": 2, ".dcm": 1, ".eps": 1, ".h5": 1, ".jxl": 1, ".npy": 1, ".pdf": 1, "none": 1}
    assert table.not_taken == counts
    assert next(iter(table.not_taken)) == ".heic"
    assert (
        "not taken (no image that can be decoded here): 2 .heic, 1 .dcm, 1 .eps, 1 .h5, 1 .jxl, 1 .npy, 1 .pdf, "
        "1 without an ending\n" in capsys.readouterr().err
    )
    again = tmp_path / "images.parquet"
    again.write_bytes(table.to_parquet())
    assert ImageTable.read(again).not_taken == counts


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
@pytest.mark.parametrize("ending", sorted(decodable()))
def test_every_ending_that_is_taken_is_of_a_decoder_that_is_there(ending):
    """Each format that Pillow can write here is written and decoded; of the others, the decoder's name is known."""
    kind = Image.registered_extensions()[ending]
    if kind not in Image.SAVE or kind == "BLP":
        assert kind in Image.OPEN
        return
    image = Image.new("L", (16, 16), 90) if kind in ("XBM", "MSP", "IM") else Image.new("RGB", (16, 16), (90, 90, 90))
    if kind in ("XBM", "MSP"):
        image = image.convert("1")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    assert to_rgb(decode(buffer.getvalue()), Look()).size[0] >= 16


def test_grades_are_in_their_order(tmp_path):
    write(tmp_path, *(f"{split}/{grade}/a.png" for split in ("train", "test") for grade in range(1, 13)))
    assert open_folder(str(tmp_path)).listing().classes == tuple(str(grade) for grade in range(1, 13))


def test_a_folder_is_a_name_whatever_it_says(tmp_path):
    write(tmp_path, "nan/a.png", "None/b.png", "NA/c.png", "null/d.png")
    assert open_folder(str(tmp_path)).listing().classes == ("NA", "None", "nan", "null")


def test_an_accent_is_one_class_however_it_is_written(tmp_path):
    """NFD from a Mac in one split, NFC in the other; keys stay what the file system says."""
    one, other = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    write(tmp_path, f"train/{one}/a.png", f"test/{other}/b.png")
    table = open_folder(str(tmp_path)).listing()
    assert (table.classes, table.labels.tolist(), table.alike) == ((other,), [0, 0], ())
    assert table.keys == [f"test/{other}/b.png", f"train/{one}/a.png"]


def test_one_folder_too_high_is_said(tmp_path, capsys):
    write(tmp_path, *(f"flowers/{split}/{kind}/a.png" for split in ("train", "test") for kind in ("rose", "tulip")))
    open_folder(str(tmp_path)).listing()
    assert capsys.readouterr().err.endswith(
        f"folder:{tmp_path}: all images are of one class, 'flowers': the folders test, train lie below 'flowers' and "
        f"were not read as splits or classes: give folder:{tmp_path}/flowers\n"
    )
