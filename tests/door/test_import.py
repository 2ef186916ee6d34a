"""`import loffta` is light, and shows what there is."""

import json
import subprocess
import sys

import pytest

import loffta

NAMES = {"extract", "plan", "open_cache", "train", "evaluate", "predict", "report", "load_run"}


@pytest.mark.smoke
def test_import_brings_nothing_heavy(tmp_path):
    code = "import json, sys, loffta; print(json.dumps([sorted(sys.modules), dir(loffta)]))"
    words = [sys.executable, "-c", code]
    modules, names = json.loads(subprocess.run(words, cwd=tmp_path, capture_output=True, check=True).stdout)
    assert {"torch", "numpy", "pydantic", "PIL", "pyarrow", "yaml", "click"}.isdisjoint(modules)
    assert [name for name in modules if name.startswith("loffta.")] == []
    assert NAMES | {"LofftaError", "__version__"} <= set(names)


def test_every_name_is_there_and_is_found_by_type_checkers():
    assert {name for name in dir(loffta) if getattr(loffta, name) is None} == set()
    assert set(loffta.__all__) == set(dir(loffta)) == {*loffta._PLACES, "__version__"}
    for name in NAMES:
        assert getattr(loffta, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        loffta.extrakt  # noqa: B018  the attribute is the case


def test_errors_are_one_family():
    for name in ("UsageError", "TooManyBadImages", "DamageFound", "NotSaved", "Stopped"):
        assert issubclass(getattr(loffta, name), loffta.LofftaError)
