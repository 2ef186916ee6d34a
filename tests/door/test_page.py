"""docs/python.md runs from top to bottom, in a plain interpreter, as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "python.md"
BEFORE = """
import random, sklearn.linear_model, sklearn.datasets
random.seed(1)
seen = random.getstate()
"""
AFTER = """
assert random.getstate() == seen, "importing the library, or a call, draws from Python's own generator"
assert probe.score(test.numpy(), test.labels()) > 0.5 and results.metrics["top1"].mean > 0.5
cached = run.predict_cached("test")
by_key = dict(zip(cached.keys, cached.predicted))
assert found.predicted == [by_key["test/3/0013.png"], by_key["test/7/0007.png"]]
"""


@pytest.mark.usefixtures("in_a_folder_with_photos")
def test_every_block_of_the_page(monkeypatch):
    monkeypatch.delenv("COLUMNS")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    Path("page.py").write_text("\n".join([BEFORE, *blocks, AFTER]))
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"# ((?:\{|\[|torch\.Size|unknown split).*)", "\n".join(blocks))
    assert len(shown) >= 4
    for line in shown:
        for part in line.split(" ... "):
            assert part in done.stdout, part
