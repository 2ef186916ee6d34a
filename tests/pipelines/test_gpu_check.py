"""The GPU check with the CPU as the device: it runs through, and what is wrong on the device is found."""

import json
import sys
from pathlib import Path

import pytest
import torch

PIPELINES = Path(__file__).parents[2] / "pipelines"
ONLY_ON_A_GPU = {"extraction": 0, "feed": 4 + 2, "dense": 1, "memory": 2}  # device mode, its limits, peaks of memory


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(PIPELINES))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    known = set(sys.modules)
    import gpu_check

    yield gpu_check
    sys.path.remove(str(PIPELINES / "benchmarks"))
    for name in set(sys.modules) - known:
        if str(PIPELINES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_row_is_there_and_right(gpu_check, tmp_path, capsys):
    """On the CPU a check compares the CPU with itself: what a GPU alone has is named as not here."""
    out = tmp_path / "found.json"
    assert gpu_check.main(["--quick", "--device", "cpu", "--dir", str(tmp_path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["device"].startswith("cpu (no GPU")
    verdicts = [row["verdict"] for row in found["rows"]]
    assert set(verdicts) == {"ok", "", "not here"}
    absent = [row["part"] for row in found["rows"] if row["verdict"] == "not here"]
    assert {part: absent.count(part) for part in ONLY_ON_A_GPU} == ONLY_ON_A_GPU
    heads = {row["what"].partition(",")[0] for row in found["rows"] if row["part"] == "training" and row["bound"]}
    assert heads == {"linear", "attentive", "fusion", "combo", "loff", "head2toe", "smp"}
    text = capsys.readouterr().out
    table = text[text.index("part  ") :].splitlines()
    assert all(len(line) <= 80 for line in table)
    assert list(tmp_path.iterdir()) == [out]


def test_what_the_device_gets_wrong_is_found(gpu_check, tmp_path, monkeypatch):
    """A feed whose buffers are reused too early, a forward pass that is off by a hundredth, a check that breaks."""
    import gpu_values

    setup = gpu_values.Setup(tmp_path, torch.device("cpu"), "test_vit", 32, 16, 8, 1)
    assert setup.on_cpu.paths.root.exists()
    bias = setup.network("cpu").model.blocks[0].mlp.fc2.bias.data
    bias += 0.01
    assert "WRONG" in _verdicts(gpu_check, setup, "extraction", gpu_values)
    epochs, calls = gpu_values._epochs, []

    def stale(*arguments):
        calls.append(arguments)
        kept = epochs(*arguments)
        return kept if len(calls) % 2 else [kept[1], *kept[1:]]

    monkeypatch.setattr(gpu_values, "_epochs", stale)
    assert "WRONG" in _verdicts(gpu_check, setup, "feed", gpu_values)
    monkeypatch.setattr(gpu_values, "read_all", lambda _: 1 / 0)
    (row,) = gpu_check._run({"augment": gpu_values.check_augmentation}, setup)
    assert row.verdict == "WRONG"
    assert "ZeroDivisionError" in row.note


def test_what_a_dense_step_gets_wrong_is_found(gpu_check, tmp_path, monkeypatch):
    """A head that is not the twin of the first, by one bias of its outputs; no cache is needed."""
    import gpu_dense
    import gpu_values

    setup = gpu_values.Setup(tmp_path, torch.device("cpu"), "test_vit", 32, 16, 8, 1)
    rows = gpu_check._run(gpu_dense.DENSE, setup)
    assert [row.verdict for row in rows] == ["ok", "ok", "not here"]
    assert [row.bound for row in rows] == [0.01, 0.1, 8.0]
    build, built = gpu_dense.build_dense_head, []

    def shifted(*arguments):
        built.append(build(*arguments))
        built[-1].networks[0].decode.skip.bias.data[0] += len(built) > 1
        return built[-1]

    monkeypatch.setattr(gpu_dense, "build_dense_head", shifted)
    assert [row.verdict for row in gpu_check._run(gpu_dense.DENSE, setup)] == ["WRONG", "WRONG", "not here"]


def _verdicts(gpu_check, setup, part, module):
    return [row.verdict for row in gpu_check._run({part: module.VALUES[part]}, setup)]
