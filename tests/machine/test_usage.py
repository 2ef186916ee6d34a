"""What work costs, measured and added up."""

import json
import resource
import time
from types import SimpleNamespace

import pytest

from loffta.machine import usage
from loffta.machine.usage import Cost, Meter


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_meter_counts_processor_time_from_its_start():
    before = resource.getrusage(resource.RUSAGE_SELF)
    meter = Meter()
    burn(0.05)
    cost = meter.cost()
    after = resource.getrusage(resource.RUSAGE_SELF)
    taken = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    assert 0.05 <= cost.cpu_s <= taken + 0.01
    assert cost.peak_rss_mib == pytest.approx(after.ru_maxrss / 2**10, rel=0.05)
    assert (cost.gpu_s, cost.peak_gpu_mib) == (0.0, None)


def test_a_gpu_counts_from_when_it_is_in_use(monkeypatch):
    """For all the time, whether it computes or waits."""
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 2, max_memory_reserved=lambda i: [3 << 20, 5 << 20][i]
    )
    now = [10.0]
    monkeypatch.setitem(usage.sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(usage.time, "monotonic", lambda: now[0])
    meter = Meter()
    now[0] = 17.0
    assert (meter.cost().gpu_s, meter.cost().peak_gpu_mib) == (7.0, 5.0)


def test_starts_add_up_and_the_highest_peak_holds():
    total = Cost(10.0, 20.0, 100.0) + Cost(1.0, 2.0, 300.0, 7.0) + Cost(0.0, 0.0, 200.0, 5.0)
    assert total == Cost(11.0, 22.0, 300.0, 7.0)
    assert Cost.of_json(json.loads(json.dumps(total.as_json()))) == total


@pytest.mark.parametrize(
    "values", [{}, {"cpu_hours": "x"}, {"cpu_hours": -1}, {"peak_gpu_mib": None}, {"gpu_hours": 1e300}]
)
def test_what_is_no_amount_counts_as_nothing(values):
    assert Cost.of_json(values) == Cost()


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (Cost(75.0, 0.0, 1000.0), "CPU time 1 min 15 s, memory up to 1.0 GB"),
        (
            Cost(75.0, 3725.0, 1000.0, 2000.0),
            "CPU time 1 min 15 s, GPU time 1 h 2 min, memory up to 1.0 GB, of the GPU 2.1 GB",
        ),
    ],
)
def test_a_cost_in_words(cost, text):
    assert str(cost) == text


def test_a_job_leaves_what_it_has_cost(tmp_path, monkeypatch):
    usage.keep()  # nobody asks
    monkeypatch.setenv(usage.FILE, str(tmp_path / "none" / "file"))
    usage.keep()  # nothing fails for it
    monkeypatch.setenv(usage.FILE, str(tmp_path / "file"))
    usage.keep()
    (file,) = tmp_path.iterdir()
    kept = Cost.of_json(json.loads(file.read_text()))
    assert 0 < kept.cpu_s <= time.process_time()
    assert kept.peak_rss_mib > 10
