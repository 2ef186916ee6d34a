"""`wds:PATTERN`: shards by pattern, offsets against tarfile's own reading, and shards that cannot be used."""

import gzip
import itertools
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loffta.errors import UsageError
from loffta.images.shards import expand_braces
from loffta.images.sources import open_source
from tests.imagesets import encoded, put, tar, wds


def problems(spec):
    with pytest.raises(UsageError) as caught:
        open_source(spec).listing()
    return caught.value.what


def one_shard(tmp_path, members, name="a.tar"):
    tar(tmp_path / name, members)
    return f"wds:{tmp_path}/{name}"


def test_shards(tmp_path, capsys):
    source = open_source(wds(tmp_path))
    table = source.listing()
    assert table.keys == [
        "train-000000/s0000.jpg",
        "train-000000/s0001.jpg",
        "train-000001/s0002.jpg",
        "test-000000/s0003.jpg",
        "test-000000/s0004.jpg",
    ]
    assert table.splits == ["train"] * 3 + ["test"] * 2
    assert (table.classes, table.labels.tolist()) == (("0", "1"), [0, 1, 0, 1, 0])
    for key, size in zip(table.keys, table.sizes.tolist(), strict=True):
        shard, name = key.split("/")
        with tarfile.open(tmp_path / f"{shard}.tar") as file:
            data = file.extractfile(name).read()
        assert (source.read(key), size) == (data, len(data))
    assert capsys.readouterr().err.endswith("}-*.tar: 3 shards; images: train 3, test 2; classes: 2\n")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train-00000{0..1}.tar", ["train-000000", "train-000001"]),
        ("train-{000001..000000}.tar", ["train-000001", "train-000000"]),
        ("{test,train}-000000.tar", ["test-000000", "train-000000"]),
        ("*-00000?.tar", ["test-000000", "train-000000", "train-000001"]),
        ("tr*-00000[1-9].tar", ["train-000001"]),
        ("{train-000000,train-*}.tar", ["train-000000", "train-000001"]),  # named twice, read once
    ],
)
def test_patterns(tmp_path, pattern, expected):
    wds(tmp_path)
    table = open_source(f"wds:{tmp_path}/{pattern}").listing()
    assert list(dict.fromkeys(key.split("/")[0] for key in table.keys)) == expected


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=2, max_size=3), min_size=1, max_size=3))
def test_braces_are_a_product(groups):
    pattern = "x" + "-".join("{" + ",".join(group) + "}" for group in groups) + ".tar"
    assert list(expand_braces(pattern)) == [f"x{'-'.join(parts)}.tar" for parts in itertools.product(*groups)]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("val/0.tar", "val"),
        ("validation/train-0.tar", "train"),  # the name is nearer than the folder
        ("imagenet_testing_00.tar", "test"),
        ("deep/dev/0.tar", "val"),
        ("dev/a/0.tar", "train"),
        ("digits-00.tar", "train"),
        ("contest-00.tar", "train"),
    ],
)
def test_the_split_is_in_the_name_or_the_folder(tmp_path, path, split):
    tar(tmp_path / "set" / path, [("a.png", encoded(1))])
    for spec in (f"wds:{tmp_path}/set/{path}", f"wds:{tmp_path}/{{set,set}}/{path}"):
        table = open_source(spec).listing()
        assert table.splits == [split]


def test_the_keys_of_one_shard_in_a_folder_of_a_split(tmp_path):
    for split in ("train", "test"):
        tar(tmp_path / split / "0.tar", [("./x/a.v1.png", encoded(1)), ("./x/b.PNG", encoded(2))])
    source = open_source(f"wds:{tmp_path}/test/*.tar")  # a dot begins the ending: a.v1.png is no image of WebDataset
    assert source.listing().keys == ["test/0/x/b.PNG"]
    assert source.read("test/0/x/b.PNG") == encoded(2)
    assert open_source(f"wds:{tmp_path}/{{train,test}}/0.tar").listing().keys == ["train/0/x/b.PNG", "test/0/x/b.PNG"]


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        ([(".cls", "3"), (".cls", "10")], "single-label", ["3", "10"]),
        ([(".cls", "dog\n"), (".txt", "a caption")], "single-label", ["dog", "a caption"]),
        ([(".json", '{"label": "dog", "id": 4}'), (".json", '{"id": 4}')], "single-label", ["dog", None]),
        ([(".json", "7"), (".json", '{"label": 3}')], "single-label", ["7", "3"]),
        ([(".json", '{"labels": ["b", "a"]}'), (".json", '{"labels": []}')], "multi-label", [("a", "b"), ()]),
        ([(".json", '{"label": 0.5}'), (".json", '{"label": -2}')], "regression", [0.5, -2.0]),
        ([(".txt", "dog"), (".txt", "cat")], "single-label", ["dog", "cat"]),
    ],
)
def test_labels(tmp_path, labels, kind, expected):
    members = [(f"{i}{ending}", text.encode()) for i, (ending, text) in enumerate(labels)]
    members += [(f"{i}.png", encoded(i)) for i in range(len(labels))]
    table = open_source(one_shard(tmp_path, members)).listing()
    assert table.label_kind == kind
    rows = range(len(expected))
    found = {
        "single-label": lambda: [table.class_name(row) for row in rows],
        "multi-label": lambda: [table.class_names(row) for row in rows],
        "regression": lambda: table.values.tolist(),
    }[kind]()
    assert found == expected


def test_captions_are_no_labels(tmp_path, capsys):
    members = [("a.png", encoded(1)), ("a.txt", b"dog"), ("b.png", encoded(2)), ("b.txt", b"word " * 20)]
    table = open_source(one_shard(tmp_path, members)).listing()
    assert (table.classes, table.labels.tolist()) == ((), [-1, -1])
    assert "the .txt members are captions, not labels\n" in capsys.readouterr().err


def test_samples_without_an_image_are_skipped_aloud(tmp_path, capsys):
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    members = [(folder, b""), ("a.png", encoded(1)), ("b.cls", b"1"), (".hidden.png", b"x"), ("a.mp3", b"x")]
    assert open_source(one_shard(tmp_path, members)).listing().keys == ["a/a.png"]
    assert "skipped 1 samples without an image: a.tar: b\n" in capsys.readouterr().err
    assert problems(one_shard(tmp_path, [("b.cls", b"1")], "b.tar")) == "no images in these shards"
    assert problems(one_shard(tmp_path, [], "c.tar")) == "no images in these shards"


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_all_that_is_wrong_with_members(tmp_path):
    members = [
        ("../a.png", b"x"),
        ("/etc/b.png", b"x"),
        ("c\n.png", b"x"),
        (special("d.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (special("e.png", tarfile.LNKTYPE, "x.png"), b""),
    ]
    assert problems(one_shard(tmp_path, members)) == (
        "5 problems in the image set: a.tar: '../a.png': the path holds '..'; "
        "a.tar: '/etc/b.png': the path is absolute; "
        "a.tar: 'c\\n.png': the path holds a control character or is not UTF-8; "
        "a.tar: 'd.png': it is no regular file; a.tar: 'e.png': it is no regular file"
    )
    members = [("a.png", b"x"), ("./a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1"), ("a.cls", b"1")]
    members.append(("b.cls", b"1" * (1 << 20) + b"1"))
    assert problems(one_shard(tmp_path, members)) == (
        "4 problems in the image set: a.tar: 'a.png': a second image of sample 'a'; a.tar: 'a.jpg': a second image of "
        "sample 'a'; a.tar: 'a.cls': a second .cls of sample 'a'; a.tar: 'b.cls': 1048577 bytes are no label"
    )


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (("a.json", b"{"), "a.tar: 'a.json': no label (Expecting property name"),
        (("a.json", b'{"label": {}}'), "a.tar: 'a.json': no label (the label is an object)"),
        (("a.json", b"[" * 100_000), "a.tar: 'a.json': no label (the JSON is nested more than 32 deep"),
        (("a.cls", b"\xff"), "a.tar: 'a.cls': no label ('utf-8' codec"),
        (("a.cls", b"-1"), "a/a.png: the label -1 is negative"),
        (("a.cls", b"a\x1bb"), "a/a.png: the label 'a\\x1bb': it holds a control character"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, member, fault):
    assert problems(one_shard(tmp_path, [("a.png", b"x"), member])).startswith(f"1 problem in the image set: {fault}")


def whole(tmp_path):
    tar(tmp_path / "w.tar", [("a.png", encoded(1)), ("b.png", encoded(2))])
    return (tmp_path / "w.tar").read_bytes()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: b"", "a.tar is no whole tar file (empty file)"),
        (lambda data: b"rubbish" * 1000, "a.tar is no whole tar file ("),
        (lambda data: data[:700], "a.tar is no whole tar file (unexpected end of data)"),
        (lambda data: data[:1024], "a.tar is no whole tar file (it breaks off)"),
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "a.tar is no whole tar file (no member at byte 1024)"),
        (lambda data: data + data, "a.tar is no whole tar file (no member at byte 2048)"),
        (
            gzip.compress,
            "a.tar is compressed with gzip: to read one image of it all before it must be unpacked; unpack",
        ),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "a.tar is compressed with zstd"),
    ],
)
def test_damaged_and_compressed_shards(tmp_path, damage, fault):
    assert len(encoded(1)) <= 512  # the members' places above
    put(tmp_path / "a.tar", damage(whole(tmp_path)))
    assert fault in problems(f"wds:{tmp_path}/a.tar")


def test_a_shard_that_leads_out(tmp_path):
    whole(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").symlink_to(tmp_path / "w.tar")
    assert problems(f"wds:{tmp_path}/set/a.tar") == (
        "1 problem in the image set: 'a.tar': it leaves the image set's folder"
    )


def test_a_shard_cut_short_since_the_listing(tmp_path):
    source = open_source(one_shard(tmp_path, [("a.png", encoded(1)), ("b.png", encoded(2))]))
    source.listing()
    put(tmp_path / "a.tar", (tmp_path / "a.tar").read_bytes()[:1600])
    assert source.read("a/a.png") == encoded(1)
    with pytest.raises(OSError, match="the shard ends before it"):
        source.read("a/b.png")
    with pytest.raises(FileNotFoundError, match=r"there is no 'a/c\.png'"):
        source.read("a/c.png")


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("a-{0..2}.tar", "there is no shard '{root}/a-1.tar', '{root}/a-2.tar'"),
        ("none-*.tar", "there is no shard '{root}/none-*.tar'"),
        ("{{0..99999999999999999}}.tar", "the pattern means over 100000 shards"),
        ("{{1..400}}{{1..400}}{{1..400}}.tar", "the pattern means over 100000 shards"),
    ],
)
def test_shards_that_are_not_there(tmp_path, pattern, what):
    one_shard(tmp_path, [("a.png", b"x")], "a-0.tar")
    pattern = pattern.replace("{{", "{").replace("}}", "}")
    assert problems(f"wds:{tmp_path}/{pattern}") == what.format(root=tmp_path)


def test_no_pattern():
    with pytest.raises(
        UsageError, match=r"there is no shard ''\n  where:  SOURCE wds:\n  remedy: give tar files, as in"
    ):
        open_source("wds:")


def test_names_with_markup_stay_what_they_are(tmp_path):
    name = "<script>alert(1)</script>"  # the slash makes a folder of it; reports escape every key
    members = [(f"{name}.png", encoded(1)), (f"{name}.json", json.dumps({"label": "<b>"}).encode())]
    table = open_source(one_shard(tmp_path, members)).listing()
    assert (table.keys, table.classes) == ([f"a/{name}.png"], ("<b>",))


def test_keys_that_coincide_over_two_shards(tmp_path):
    """`b/c.png` of a.tar and `c.png` of a/b.tar: inside one shard it was an error, over two an image vanished."""
    tar(tmp_path / "a.tar", [("b/c.png", encoded(1)), ("b/c.cls", b"cat")])
    tar(tmp_path / "a" / "b.tar", [("c.png", encoded(2)), ("c.cls", b"dog")])
    assert problems(f"wds:{tmp_path}/{{a,a/b}}.tar") == (
        "1 problem in the image set: a/b.tar: 'c.png' and 'b/c.png' of a.tar have one key"
    )


def test_numbers_to_learn_are_the_field_value(tmp_path):
    """Whole or not, as in a table; beside a label it is not looked at."""
    picture = encoded(0)
    cells = ['{"value": 31}', '{"value": null}', "{}", '{"value": 1.5}']
    members = [m for i, cell in enumerate(cells) for m in ((f"{i}.jpg", picture), (f"{i}.json", cell.encode()))]
    table = open_source(one_shard(tmp_path, members)).listing()
    assert table.label_kind == "regression"
    assert [table.value(row) for row in range(4)] == [31, None, None, 1.5]
    both = one_shard(tmp_path, [("0.jpg", picture), ("0.json", b'{"value": 2, "label": "x"}')], "b.tar")
    assert open_source(both).listing().classes == ("x",)
    units = one_shard(tmp_path, [("0.jpg", picture), ("0.json", b'{"value": "31 years"}')], "c.tar")
    assert "c/0.jpg: '31 years' is no number; an image without one has an empty cell" in problems(units)
