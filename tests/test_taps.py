import subprocess
import sys

import pytest

from loffta.errors import UsageError
from loffta.taps import is_inner, is_map, merge_specs, module_paths, resolve_taps
from loffta.tokens import TokenSpec

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
        ("", "", f"known: last, last4, four-even, all, norm2, alf, final, every, {', '.join(BLOCKS)}"),
        ("last,,all", "", f"known: last, last4, four-even, all, norm2, alf, final, every, {', '.join(BLOCKS)}"),
    ],
)
def test_unknown_name_lists_the_near_ones(request_, name, remedy):
    with pytest.raises(UsageError) as caught:
        resolve_taps(request_, BLOCKS, where="--taps of vit_tiny_patch16_224")
    assert str(caught.value) == (f"unknown tap '{name}'\n  where:  --taps of vit_tiny_patch16_224\n  remedy: {remedy}")
    assert caught.value.exit_code == 2


PARTS = (".attn", ".norm2", ".mlp.hidden", ".mlp", "")
EVERY = (*(f"blocks.{i}{part}" for i in range(12) for part in PARTS), "norm")
NORM2 = tuple(f"blocks.{i}.norm2" for i in range(12))
NO_OUTPUTS = "there are no outputs of blocks or stages"


@pytest.mark.parametrize("request_", ["last", "last4", "four-even", "all", "all,blocks.3"])
def test_sets_of_outputs_leave_inner_taps_out(request_):
    assert resolve_taps(request_, EVERY, where="--taps") == resolve_taps(request_, BLOCKS, where="--taps")


@pytest.mark.parametrize(
    ("request_", "available", "expected"),
    [
        ("norm2", EVERY, NORM2),
        ("alf", EVERY, (*NORM2[1:], "norm")),
        ("alf", (*EVERY, "head"), (*NORM2[1:], "head")),
        ("final", EVERY, ("norm",)),
        ("final", (*EVERY, "head"), ("head",)),
        ("alf,norm", (*EVERY, "head"), (*NORM2[1:], "norm", "head")),
        ("every", EVERY, EVERY),
        ("every", STAGES, STAGES),
        ("every", ("module:patch_embed", "blocks.3.mlp", "norm"), ("module:patch_embed", "blocks.3.mlp", "norm")),
        ("norm,last,blocks.11.norm2", EVERY, ("blocks.11.norm2", "blocks.11", "norm")),
        ("blocks.2.mlp,blocks.2.attn,blocks.2.mlp.hidden", EVERY, [f"blocks.2{p}" for p in (".attn", *PARTS[2:4])]),
        ("norm2", NORM2, NORM2),  # a store that holds nothing else
        ("norm2", ("blocks.3.norm2", "blocks.3", "norm"), ("blocks.3.norm2",)),
        ("alf", ("blocks.0.norm2", "blocks.3.norm2", "blocks.3", "norm"), ("blocks.3.norm2", "norm")),
    ],
)
def test_inner_taps_and_their_sets(request_, available, expected):
    assert resolve_taps(request_, available, where="--taps") == tuple(expected)


@pytest.mark.parametrize(
    ("name", "inner"),
    [(tap, tap not in BLOCKS) for tap in EVERY] + [("head", True), ("stages.0", False), ("blocks.0.norm2.x", False)],
)
def test_what_is_inner(name, inner):
    assert is_inner(name) == inner


@pytest.mark.parametrize(
    ("request_", "available", "what", "remedy"),
    [
        ("last", NORM2, NO_OUTPUTS, "use norm2 or every or names such as blocks.11.norm2"),
        ("all", (*NORM2, "norm"), NO_OUTPUTS, "use norm2 or alf or final or every or names such as norm"),
        ("norm2", ("blocks.0",), "no norm2 of any block", None),
        ("alf", NORM2, "there is neither a final `norm` nor a projection `head` over all tokens", None),
        ("final", BLOCKS, "there is neither a final `norm` nor a projection `head` over all tokens", None),
    ],
)
def test_empty_set_says_why(request_, available, what, remedy):
    with pytest.raises(UsageError) as caught:
        resolve_taps(request_, available, where="--features x")
    assert caught.value.what == f"the set '{request_}' is empty here: {what}"
    assert caught.value.where == "--features x"
    assert remedy is None or caught.value.remedy == remedy


def test_unknown_name_lists_the_near_ones_of_inner_taps():
    with pytest.raises(UsageError, match=r"unknown tap 'blocks.3.norm'(?s:.)*did you mean blocks.3.norm2 or"):
        resolve_taps("blocks.3.norm", EVERY, where="--taps")
    with pytest.raises(UsageError, match=r"unknown tap 'nrom2'(?s:.)*did you mean norm2"):
        resolve_taps("nrom2", EVERY, where="--taps")


@pytest.mark.parametrize(
    ("tap", "expected"),
    [("stages.0", True), ("module:stem.conv", True), *((tap, False) for tap in (*EVERY[:5], "norm", "head"))],
)
def test_what_may_be_a_map(tap, expected):
    assert is_map(tap) == expected


@pytest.mark.parametrize("request_", ["norm2", "alf", "norm", "head", "blocks.0.mlp.hidden"])
def test_nets_with_stages_have_no_inner_taps(request_):
    with pytest.raises(UsageError, match=rf"^'{request_}' does not exist here: .*\(windows, units") as caught:
        resolve_taps(request_, STAGES, where="--taps")
    assert caught.value.remedy == "use the outputs of its stages: last, last4, four-even, all or stages.N"


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ("a b c", "a b c", "a b c"),
        ("a c", "a b c", "a b c"),
        ("b", "a b c d", "a b c d"),
        ("a m b n", "a b x", "a m b x n"),  # m and n are known to the store alone
        ("m a", "x a", "x m a"),
        ("", "a b", "a b"),
    ],
)
def test_new_taps_find_their_place_in_an_old_list(old, new, merged):
    def specs(names, dim):
        return tuple(TokenSpec(name, 1, 1, 0, dim) for name in names.split())

    result = merge_specs(specs(old, 3), specs(new, 5))
    assert " ".join(spec.tap for spec in result) == merged
    assert {spec.tap for spec in result if spec.dim == 3} == set(old.split())


def test_paths_of_modules_in_a_request():
    request = "last, module:blocks.3.attn.proj ,module:norm_pre,blocks.2,module:norm_pre"
    assert module_paths(request) == ("blocks.3.attn.proj", "norm_pre")
    assert module_paths("last,all") == ()
    assert is_inner("module:layers.2")
    available = ("module:patch_embed", "blocks.0", "module:blocks.1.attn.proj", "blocks.1")
    assert resolve_taps("all", available, where="x") == ("blocks.0", "blocks.1")
    assert resolve_taps("last,module:patch_embed", available, where="x") == ("module:patch_embed", "blocks.1")


def test_module_imports_no_timm():
    code = "import sys, loffta.taps; print('timm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
