"""predict's file against the cached predictions of the same run, and every way in which it must not be written."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loffta_cli.main import main

from loffta.door.run import load_run
from loffta.errors import LofftaError, Stopped, TooManyBadImages, UsageError
from loffta.images.one_file import OneFile
from loffta.machine.process import StopFlag
from loffta.online import predict as module
from loffta.online.predict import open_images, predict
from loffta.runs.run import RunPaths
from loffta.runs.temperature import Temperatures, write_temperatures
from tests.fakes import PngSource, picture, png
from tests.online.runs import CPU, loader, make_fake_cache, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three seeds; tested on all of the 20 pictures; the cache is gone."""
    root = tmp_path_factory.mktemp("run")
    cache = make_fake_cache(root / "cache", kinds=("grid",))
    make_run(cache, root / "run", seeds=3, lr=0.1)
    from loffta.evaluation.evaluate import evaluate

    evaluate(root / "run", "train+test", device="cpu")
    shutil.rmtree(root / "cache")
    return root / "run"


def told(run, out, source=None, **options):
    options = {"device": CPU, "batch_size": 8} | options
    return predict(run, source or PngSource(20), out, options.pop("load", loader()), **options)


def test_it_is_what_the_cached_path_says(run, tmp_path):
    cached = pq.read_table(RunPaths(run).predictions("train+test")).to_pydict()
    order = np.lexsort((cached["row"], cached["seed"]))
    of_seed = {name: np.array(values)[order].reshape(3, 20, *np.shape(values)[1:]) for name, values in cached.items()}
    done = told(run, tmp_path / "deep" / "p.parquet", per_seed=True)
    table = pq.read_table(tmp_path / "deep" / "p.parquet")
    found = table.to_pydict()
    assert found["key"] == of_seed["key"][0].tolist() == PngSource(20).listing().keys
    assert set(found["status"]) == {"ok"}
    assert set(found["reason"]) == {None}
    classes = json.loads(table.schema.metadata[b"loffta-predictions"])["classes"]
    assert classes == ["a", "b", "c"]
    scores = np.array([found[f"seed_{seed}_probabilities"] for seed in range(3)])
    assert scores.shape == (3, 20, 3)
    np.testing.assert_allclose(scores, of_seed["probabilities"], atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=2), 1, atol=1e-6)
    for seed in range(3):
        assert found[f"seed_{seed}_predicted"] == [classes[i] for i in of_seed["predicted"][seed]]
        np.testing.assert_allclose(found[f"seed_{seed}_confidence"], of_seed["confidence"][seed], atol=1e-5)
        np.testing.assert_array_equal(scores[seed].argmax(axis=1), of_seed["predicted"][seed])
    mean = scores.mean(axis=0)
    np.testing.assert_allclose(found["probabilities"], mean, atol=1e-6)
    np.testing.assert_allclose(found["confidence"], mean.max(axis=1), atol=1e-6)
    assert found["predicted"] == [classes[i] for i in mean.argmax(axis=1)]
    assert done.counts == {name: found["predicted"].count(name) for name in classes if name in found["predicted"]}
    assert (done.images, done.bad) == (20, 0)


def test_calibrated_probabilities_are_sharpened_or_flattened_and_predictions_stay(run, tmp_path, capsys):
    """Against the powers of the probabilities that the plain call gives."""
    copy = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(LofftaError, match=r"no temperature(.|\n)*--validate-on SPLIT"):
        told(copy, tmp_path / "no.parquet", calibrated=True)
    assert not (tmp_path / "no.parquet").exists()
    divisors = (0.5, 2.0, 1.5)
    write_temperatures(RunPaths(copy), Temperatures(divisors, 3.0, "val", 40))
    told(copy, tmp_path / "plain.parquet", per_seed=True)
    told(copy, tmp_path / "calibrated.parquet", per_seed=True, calibrated=True)
    plain, table = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "calibrated"))
    plain, found = plain.to_pydict(), table.to_pydict()
    for prefix, divisor in (("", 3.0), *((f"seed_{i}_", t) for i, t in enumerate(divisors))):
        powers = np.array(plain[f"{prefix}probabilities"]) ** (1 / divisor)
        expected = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[f"{prefix}probabilities"], expected, atol=1e-5)
        assert found[f"{prefix}predicted"] == plain[f"{prefix}predicted"]
    assert json.loads(table.schema.metadata[b"loffta-predictions"])["temperature"] == 3.0
    opened = load_run(copy, device="cpu", calibrated=True)
    opened._load = loader()
    given = [picture(i) for i in range(3)]
    np.testing.assert_allclose(opened.predict(given).probabilities, np.array(found["probabilities"])[:3], atol=1e-5)


def test_bad_images_have_their_rows_and_reasons(run, tmp_path):
    out = tmp_path / "p.parquet"
    broken = {1: b"", 19: OSError("the disk is gone")} | dict.fromkeys(range(8, 16), b"?")
    whole = told(run, tmp_path / "whole.parquet")
    done = told(run, out, PngSource(20, broken), max_bad_frac=1.0)
    found, good = pq.read_table(out).to_pydict(), pq.read_table(tmp_path / "whole.parquet").to_pydict()
    assert (done.bad, whole.bad) == (10, 0)
    assert list(found) == ["key", "status", "reason", "predicted", "confidence", "probabilities"]
    for row in range(20):
        if row in broken:
            values = [found[name][row] for name in ("status", "predicted", "confidence", "probabilities")]
            assert values == ["bad", None, None, None]
        else:
            assert found["predicted"][row] == good["predicted"][row]
            np.testing.assert_allclose(found["probabilities"][row], good["probabilities"][row], atol=1e-6)
    assert found["reason"][1] == "empty file"
    assert found["reason"][19] == "cannot be read: the disk is gone"


def test_too_many_bad_images_write_the_file_and_fail(run, tmp_path):
    with pytest.raises(TooManyBadImages, match="2 of 20 images") as caught:
        told(run, tmp_path / "p.parquet", PngSource(20, {1: b"", 2: b""}), max_bad_frac=0.05)
    assert (caught.value.exit_code, caught.value.where) == (3, f"{tmp_path / 'p.parquet'} is written")
    assert len(pq.read_table(tmp_path / "p.parquet")) == 20


def test_rows_are_written_as_they_come(run, tmp_path, monkeypatch):
    told(run, tmp_path / "one.parquet")
    monkeypatch.setattr(module, "ROW_GROUP", 8)
    told(run, tmp_path / "many.parquet")
    with pq.ParquetFile(tmp_path / "many.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [8, 8, 4]
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "many.parquet"))


def test_what_is_not_its_own_stays(run, tmp_path):
    mine = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"a": [1]}), mine)
    notes = tmp_path / "notes.parquet"
    notes.write_text("important")
    dangling = tmp_path / "link.parquet"
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (mine, notes, dangling):
        with pytest.raises(LofftaError, match="no file of predictions, and will not be replaced"):
            told(run, path)
    assert notes.read_text() == "important"
    assert pq.read_table(mine).to_pydict() == {"a": [1]}
    told(run, tmp_path / "p.parquet")
    before = (tmp_path / "p.parquet").read_bytes()
    told(run, tmp_path / "p.parquet", PngSource(5))
    assert len(pq.read_table(tmp_path / "p.parquet")) == 5
    assert (tmp_path / "p.parquet").read_bytes() != before


def test_names_that_are_no_parquet_files(run, tmp_path):
    for name in ("p.csv", "p", "p.parquet.gz"):
        with pytest.raises(UsageError, match=r"written as parquet(.|\n)*write --out .*/p(\.parquet)+$"):
            told(run, tmp_path / name)
    folder = tmp_path / "p.parquet"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"this is a folder(.|\n)*p.parquet/predictions.parquet$"):
        told(run, folder)
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_place_that_may_not_be_written(run, tmp_path, monkeypatch):
    """A read-only file system refuses the temporary file, and to delete it although it is not there."""

    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for name in ("mkdir", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(LofftaError, match=r"nothing can be written here \(Read-only(.|\n)*/ro\n"):
        told(run, tmp_path / "ro" / "p.parquet")


def test_a_file_where_a_folder_should_be(run, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(LofftaError, match="a file is where this folder should be"):
        told(run, tmp_path / "file" / "p.parquet")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_place_that_may_not_be_looked_at(run, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(LofftaError, match=r"nothing can be written here \(Permission denied(.|\n)*p.parquet"):
        told(run, tmp_path / "p.parquet")


def test_a_signal_leaves_nothing_new(run, tmp_path):
    told(run, tmp_path / "p.parquet")
    before = (tmp_path / "p.parquet").read_bytes()
    stop = StopFlag()

    class Interrupted(PngSource):
        def read(self, key):
            if key == "0017.png":
                stop.signal = 15
            return super().read(key)

    with pytest.raises(Stopped, match=r"predicting; p.parquet was not written") as caught:
        told(run, tmp_path / "p.parquet", Interrupted(20), stop=stop)
    assert caught.value.exit_code == 75
    assert (tmp_path / "p.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.setattr("loffta.door.predict.backbone_loader", lambda _: loader())


def test_the_command_on_a_folder_a_table_and_one_file(run, tmp_path, capsys, commands):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        (pictures / f"{i}.png").write_bytes(png(picture(i)))
    (pictures / "3.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text("image,label\npictures/2.png,\npictures/0.png,\n")
    told(run, tmp_path / "whole.parquet")
    right = pq.read_table(tmp_path / "whole.parquet").to_pydict()["predicted"]
    out = tmp_path / "p.parquet"
    words = ["--out", str(out), "--device", "cpu", "--json"]
    assert main(["predict", str(run), str(pictures), *words]) == 3
    assert "1 of 4 images cannot be used" in capsys.readouterr().err
    assert pq.read_table(out).to_pydict()["predicted"] == [*right[:3], None]
    assert main(["predict", str(run), str(tmp_path / "t.csv"), *words]) == 0
    assert pq.read_table(out).to_pydict()["predicted"] == [right[2], right[0]]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "t.csv").write_text("image,label\n2.png,\n1.png,\n")  # its images lie elsewhere
    (tmp_path / "mine" / "links").symlink_to(pictures)
    assert main(["predict", str(run), str(tmp_path / "mine" / "t.csv"), "--image-root", str(pictures), *words]) == 0
    assert pq.read_table(out).to_pydict()["predicted"] == [right[2], right[1]]
    words += ["--max-bad-frac", "1"]
    assert main(["predict", str(run), str(tmp_path / "mine"), "--follow-links", *words]) == 0
    assert pq.read_table(out).to_pydict()["predicted"] == [*right[:3], None]
    assert main(["predict", str(run), str(pictures / "1.png"), "--follow-links", *words]) == 2
    assert "--follow-links is for folders and tables, not for a single file" in capsys.readouterr().err
    assert main(["predict", str(run), str(pictures / "1.png"), *words]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["images"], summary["counts"]) == (1, {right[1]: 1})
    found = pq.read_table(out).to_pydict()
    assert (found["key"], found["predicted"]) == (["1.png"], [right[1]])


def test_sources(tmp_path):
    file = tmp_path / "a b.webp"
    file.write_bytes(b"x")
    assert isinstance(open_images(str(file)), OneFile)
    assert open_images(str(file)).read("a b.webp") == b"x"
    with pytest.raises(OSError, match=r"holds '\.\.'"):
        open_images(str(file)).read("../secret")
    with pytest.raises(UsageError, match=r"no folder and no \.csv"):
        open_images(str(tmp_path / "nothing.png"))
    with pytest.raises(UsageError, match="the file's name cannot be used"):
        OneFile(Path("a\nb.png"))


def test_runs_that_cannot_predict(run, tmp_path):
    with pytest.raises(LofftaError, match="there is no run here"):
        told(tmp_path / "none", tmp_path / "p.parquet")
    copied = shutil.copytree(run, tmp_path / "run")
    RunPaths(copied).head(2).unlink()
    with pytest.raises(LofftaError, match="no trained head yet"):
        told(copied, tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()
