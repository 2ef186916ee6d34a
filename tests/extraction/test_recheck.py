"""Sources that changed behind a cache: altered, vanished, unreadable; against the images that were put there."""

from loffta_cli.main import main

from loffta.extraction.extract import extract
from loffta.extraction.recheck import Altered, verify_images
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.hashes import recorded_hashes
from tests.fakes import FakeBackbone, PngSource, fake_config, picture, png

N = 20  # two and a half units of 8


def fill(root, broken=None, backbone=None, **options):
    config = fake_config(root, max_bad_frac=1.0, **options)
    extract(config, PngSource(N, broken), lambda _: backbone or FakeBackbone(), StopFlag())
    return Cache.open(root)


def test_unchanged_images(tmp_path, capsys):
    cache, source = fill(tmp_path, {3: b"no image"}), PngSource(N, {3: b"another bad one"})
    assert list(verify_images(cache, source)) == []
    assert set(source.reads.values()) == {1}
    assert len(source.reads) == N - 1  # a quarantined image has no features


def test_altered_and_vanished_ones_are_all_named(tmp_path):
    cache = fill(tmp_path)
    other = PngSource(N, {5: png(picture(99)), 17: FileNotFoundError(2, "No such file or directory")})
    arrays = ", ".join(array.paths.name for array in cache.arrays())
    assert list(verify_images(cache, other)) == [
        Altered(5, "0005.png", f"other bytes than those that {arrays} were made from"),
        Altered(17, "0017.png", "cannot be read: No such file or directory"),
    ]


def test_images_never_extracted_are_not_asked_for(tmp_path):
    cache, source = fill(tmp_path, limit=8), PngSource(N)
    assert list(verify_images(cache, source)) == []
    assert len(source.reads) == 8


def test_an_image_altered_between_two_backbones(tmp_path):
    fill(tmp_path)
    changed = PngSource(N, {4: png(picture(4)) + b"x"})
    listing = PngSource(N).listing()
    changed.listing = lambda: listing  # of the same size in the listing: nothing else would tell
    config = fake_config(tmp_path, names=["other"], kinds=("mean",))
    extract(config, changed, lambda _: FakeBackbone("other"), StopFlag())
    cache = Cache.open(tmp_path)
    by_array = recorded_hashes(cache)[4]
    assert len(set(by_array.values())) == 2
    (now,) = verify_images(cache, changed)
    (before,) = verify_images(cache, PngSource(N))
    assert "fake-" in now.what
    assert "other-" not in now.what
    assert "other-" in before.what
    assert "fake-" not in before.what


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)
    folder, root = tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(picture(i)))
    words = ["extract", str(folder), "--backbone", "test_vit", "--weights", "random:0", "--image-px", "32"]
    assert main([*words, "--cache", str(root), "--device", "cpu"]) == 0
    assert main(["verify", str(root), "--images"]) == 0
    assert "every image is the one that was extracted" in capsys.readouterr().out
    data = bytearray((folder / "1.png").read_bytes())
    data[-20] ^= 1
    (folder / "1.png").write_bytes(data)
    (folder / "3.png").unlink()
    assert main(["verify", str(root), "--images", "--json"]) == 4
    out, err = capsys.readouterr()
    assert "row 1, 1.png: other bytes than those that targets/thumb" in out
    assert "row 3, 3.png: cannot be read: No such file or directory" in out
    assert '"altered_images": [{"row": 1' in out
    assert "2 images are not those that were extracted, the first 1.png" in err
    assert "remedy: bring the old images back, or extract" in err
