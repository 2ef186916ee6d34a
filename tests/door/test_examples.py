"""Every example of the front door runs: those in docstrings, in the order of work; test_page.py has docs/python.md."""

import doctest
import io

import numpy as np
import pytest
import torch

import loffta

FUNCTIONS = (
    "extract",
    "plan",
    "open_cache",
    "label",
    "pack",
    "unpack",
    "audit",
    "scan",
    "train",
    "evaluate",
    "load_run",
    "predict",
    "report",
)
CLASSES = {"open_cache": ("OpenCache", "Selection"), "load_run": ("Run",)}  # whose methods are shown after it


def examples():
    """(name, docstring) in the order in which they need each other."""
    for name in FUNCTIONS:
        yield name, getattr(loffta, name).__doc__
        for owner in CLASSES.get(name, ()):
            methods = vars(getattr(loffta, owner)).items()
            yield from ((f"{owner}.{method}", found.__doc__) for method, found in methods if method[0] != "_")


@pytest.mark.usefixtures("in_a_folder_with_photos")
def test_docstrings():
    space = {"loffta": loffta, "np": np, "torch": torch}
    parser, runner, told = doctest.DocTestParser(), doctest.DocTestRunner(), io.StringIO()
    for name, text in examples():
        test = parser.get_doctest(text or "", space, name, None, 0)
        runner.run(test, out=told.write, clear_globs=False)
        space.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0, told.getvalue()


def test_every_function_and_most_methods_have_an_example():
    without = {name for name, text in examples() if ">>>" not in (text or "")}
    assert not without & set(FUNCTIONS)
