"""Memory that is not enough: what it says, and what an evaluation asks for."""

import pytest
import torch

from loffta.config import TrainConfig
from loffta.errors import LofftaError
from loffta.evaluation import evaluate as evaluation
from loffta.machine.process import StopFlag
from loffta.training import fit as loop
from loffta.training.train import train
from tests.caches import toy_cache

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


def go(cache, out, **recipe):
    recipe = {"epochs": 1, "batch_size": 16, "min_steps": None} | recipe
    config = TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe)
    return train(config, out, StopFlag())


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:4])
@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ("loffta.training.fit._step", "--feed stream(.|\n)*--set batch_size"),
        ("loffta.evaluation.evaluate.predict_batches", "loffta evaluate RUN --device cpu"),
    ],
)
def test_memory_that_is_not_enough(cache, tmp_path, monkeypatch, where, remedy, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(where, full)
    with pytest.raises(LofftaError, match=rf"memory of cpu is not enough(.|\n)*{remedy}") as caught:
        go(cache, tmp_path / "run")
    assert (str(error).splitlines() or ["allocation failed"])[0] in caught.value.what
    assert caught.value.where == str(tmp_path / "run")


def test_other_errors_of_a_step_stay_what_they_are(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_step", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        go(cache, tmp_path / "run")


@pytest.mark.parametrize(("asked", "n_images"), [(8, 8), (2048, 64)])
def test_an_evaluation_takes_no_more_images_at_a_time_than_the_training(cache, tmp_path, monkeypatch, asked, n_images):
    """A large batch that was made smaller for few images would be as large as it says for the test images."""
    seen, predict = [], evaluation.predict
    monkeypatch.setattr(
        evaluation,
        "predict",
        lambda *a, batch_size, **k: seen.append(batch_size) or predict(*a, batch_size=batch_size, **k),
    )
    go(cache, tmp_path / "run", batch_size=asked, min_batches=2)
    assert seen == [n_images]
