"""A call of the front door leaves the process as it was: from any thread, after an error, and with a silent stdout."""

import os
import random
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import loffta
from loffta.machine.borrowed import Shared, borrowed
from loffta.machine.process import cap_threads, keep_freed_memory
from loffta.machine.signals import STOPS
from tests.forked import Forked

THREADS = 1  # of this test's own torch: fewer than a command would take
NET = {"backbone": "test_vit", "weights": "random:0", "image_px": 32, "device": "cpu"}


def state():
    """All that a library could leave behind; Python's own generator, from which beartype draws, is looked at below."""
    core = vars(Image)["core"]
    return {
        "torch threads": torch.get_num_threads(),
        "torch interop threads": torch.get_num_interop_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),
        "signals": {number: signal.getsignal(number) for number in STOPS},
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "cwd": Path.cwd(),
        "path": list(sys.path),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, core.get_blocks_max()),
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
        "standard streams": (sys.stdout, sys.stderr),
        "numpy errors": np.geterr(),
    }


@pytest.fixture
def own_settings():
    """Settings that are nobody's default, so that one that was set to its default shows."""
    core, threads = vars(Image)["core"], torch.get_num_threads()
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    core.set_blocks_max(3)
    yield
    core.set_blocks_max(0)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, a cache and a run, and what each call of the front door takes."""
    root = tmp_path_factory.mktemp("door")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for row in range(12):
            path = root / "photos" / split / f"class {row % 2}" / f"{row:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 120, (32, 32, 3), np.uint8) + np.uint8(row % 2 * 120)).save(path)
    loffta.extract(root / "photos", cache=root / "cache", **NET, progress=False)
    loffta.train(root / "cache", head="linear", out=root / "run", set={"epochs": 2}, device="cpu", progress=False)
    return root


def calls(root, new):
    """Every function, doing real work; `new` is a folder to write to."""
    recipe = {"set": {"epochs": 2}, "device": "cpu"}
    return {
        "extract": lambda: loffta.extract(root / "photos", cache=new / "cache", **NET),
        "plan": lambda: loffta.plan(root / "photos", cache=new / "cache", sample=4, **NET),
        "train": lambda: loffta.train(root / "cache", head="linear", out=new / "run", **recipe),
        "train online": lambda: loffta.train(
            online=root / "photos", out=new / "online", set={"epochs": 1, "batch_size": 8}, unfrozen=True, **NET
        ),
        "evaluate": lambda: loffta.evaluate(root / "run", split="train", device="cpu"),
        "evaluate online": lambda: loffta.evaluate([root / "run"], online=root / "photos", device="cpu"),
        "predict": lambda: loffta.predict(root / "run", root / "photos", out=new / "p.parquet", device="cpu"),
        "report": lambda: loffta.report(root / "run", out=new / "report.html"),
        "open_cache": lambda: loffta.open_cache(root / "cache").features(split="train").table(),
        "load_run": lambda: loffta.load_run(root / "run", device="cpu").predict(np.zeros((8, 8, 3), np.uint8)),
        "load_run cached": lambda: loffta.load_run(root / "run", device="cpu").predict_cached("train"),
    }


def broken(root, new):
    """Every function, failing half way."""
    (root / "broken.png").write_bytes(b"no image")
    return {
        "extract": lambda: loffta.extract(root / "bad", cache=new / "cache", **NET),
        "plan": lambda: loffta.plan(root / "photos", cache=new / "cache", **NET | {"weights": "no-such-file.pth"}),
        "train": lambda: loffta.train(
            root / "cache", head="linear", out=new / "run", set={"epochs": 2, "lr": 1e30}, device="cpu"
        ),
        "train online": lambda: loffta.train(
            online=root / "photos", out=new / "o", set={"epochs": 2, "lr": 1e30}, unfrozen=True, lr_backbone=1e30, **NET
        ),
        "evaluate": lambda: loffta.evaluate(root / "run", split="no-such-split", device="cpu"),
        "evaluate online": lambda: loffta.evaluate(root / "run", online=root / "bad", device="cpu"),
        "predict": lambda: loffta.predict(root / "run", root / "broken.png", out=new / "p.parquet", device="cpu"),
        "report": lambda: loffta.report(new, out=new / "report.html"),
        "open_cache": lambda: loffta.open_cache(new),
        "load_run": lambda: loffta.load_run(root / "run", device="cpu").predict(root / "broken.png"),
    }


@pytest.mark.usefixtures("own_settings")
@pytest.mark.parametrize("name", calls(Path(), Path()))
def test_nothing_stays(name, folder, tmp_path, capfd):
    before = state()
    calls(folder, tmp_path)[name]()
    assert state() == before
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("own_settings")
@pytest.mark.parametrize("name", [*calls(Path(), Path())][:-1])
def test_nothing_stays_after_an_error(name, folder, tmp_path, capfd):
    for split in ("train", "test"):
        (folder / "bad" / split / "class 0").mkdir(parents=True, exist_ok=True)
        (folder / "bad" / split / "class 0" / "0.png").write_bytes(b"no image")
    before = state()
    with pytest.raises(loffta.LofftaError):
        broken(folder, tmp_path)[name]()
    assert state() == before
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("own_settings")
def test_from_other_threads_at_a_time(folder, tmp_path):
    before = state()
    names = ("extract", "train", "evaluate", "predict", "load_run")
    with ThreadPoolExecutor(len(names)) as pool:
        found = [pool.submit(calls(folder, tmp_path)[name]) for name in names]
        for future in found:
            future.result()
    assert state() == before


def call_all(root, new):
    for name, call in calls(root, new).items():
        random.seed(1)
        before = random.getstate()
        call()
        assert random.getstate() == before, name


def test_pythons_own_generator(folder, tmp_path):
    """In a process where beartype draws nothing; tests/door/test_page.py looks at what importing does."""
    process = Forked(call_all, folder, tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, ""), err


@pytest.mark.parametrize("name", ["extract", "train", "evaluate online", "predict", "load_run"])
def test_without_progress_nothing_is_said(name, folder, tmp_path, capfd):
    quiet = {"progress": False}
    said = {
        "extract": lambda: loffta.extract(folder / "photos", cache=tmp_path / "cache", **NET, **quiet),
        "train": lambda: loffta.train(folder / "cache", head="linear", out=tmp_path / "run", device="cpu", **quiet),
        "evaluate online": lambda: loffta.evaluate(folder / "run", online=folder / "photos", device="cpu", **quiet),
        "predict": lambda: loffta.predict(
            folder / "run", folder / "photos", out=tmp_path / "p.parquet", device="cpu", **quiet
        ),
        "load_run": calls(folder, tmp_path)["load_run"],
    }
    said[name]()
    assert capfd.readouterr() == ("", "")


def test_threads_are_no_more_than_the_callers_and_memory_is_let_be(monkeypatch):
    monkeypatch.setattr("loffta.machine.process.available_cpus", lambda: 7)
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("mallopt cannot be undone"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with borrowed():
            assert cap_threads() == torch.get_num_threads() == 3
            keep_freed_memory()
        assert cap_threads() == 7  # a process of our own
    finally:
        torch.set_num_threads(before)


def test_a_shared_change_ends_with_the_last():
    log = []

    class Change:
        def __enter__(self):
            log.append("made")

        def __exit__(self, *_):
            log.append("undone")

    shared = Shared(Change)
    first, second = threading.Event(), threading.Event()

    def work():
        with shared:
            first.set()
            second.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    first.wait(10)
    with shared:
        pass
    assert log == ["made"]
    second.set()
    thread.join()
    assert log == ["made", "undone"]
    with shared:
        assert log == ["made", "undone", "made"]
