import subprocess
import sys

import pytest

from loffta.errors import UsageError
from loffta.taps import resolve_taps

BLOCKS = tuple(f"blocks.{i}" for i in range(12))
STAGES = tuple(f"stages.{i}" for i in range(5))


def blocks(*indices):
    return tuple(f"blocks.{i}" for i in indices)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("last", blocks(11)),
        ("last4", blocks(8, 9, 10, 11)),
        ("four-even", blocks(2, 5, 8, 11)),
        ("all", BLOCKS),
        ("blocks.10", blocks(10)),
        ("blocks.10,blocks.2", blocks(2, 10)),  # 10 sorts before 2 as text, not in depth
        ("last, blocks.0 ,last4,blocks.11", blocks(0, 8, 9, 10, 11)),
        ("all,last", BLOCKS),
    ],
)
def test_resolves_names_and_sets_in_depth_order(request_, expected):
    assert resolve_taps(request_, BLOCKS, where="--taps") == expected


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 4]), (24, [5, 11, 17, 23]), (40, [9, 19, 29, 39])],
)
def test_four_even_ends_at_the_last(depth, expected):
    available = [f"stages.{i}" for i in range(depth)]
    assert resolve_taps("four-even", available, where="--taps") == tuple(f"stages.{i}" for i in expected)


def test_sets_of_a_shallow_net():
    assert resolve_taps("last4", STAGES, where="--taps") == STAGES[1:]
    assert resolve_taps("last4", STAGES[:2], where="--taps") == STAGES[:2]


@pytest.mark.parametrize(
    ("request_", "name", "remedy"),
    [
        ("blocks.12", "blocks.12", "did you mean blocks.2 or blocks.1 or blocks.11?"),
        ("last,fuor-even", "fuor-even", "did you mean four-even?"),
        ("lats4", "lats4", "did you mean last4 or last?"),
        ("", "", f"known: last, last4, four-even, all, {', '.join(BLOCKS)}"),
        ("last,,all", "", f"known: last, last4, four-even, all, {', '.join(BLOCKS)}"),
    ],
)
def test_unknown_name_lists_the_near_ones(request_, name, remedy):
    with pytest.raises(UsageError) as caught:
        resolve_taps(request_, BLOCKS, where="--taps of vit_tiny_patch16_224")
    assert str(caught.value) == (f"unknown tap '{name}'\n  where:  --taps of vit_tiny_patch16_224\n  remedy: {remedy}")
    assert caught.value.exit_code == 2


def test_module_imports_no_timm():
    code = "import sys, loffta.taps; print('timm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
