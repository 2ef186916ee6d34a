import json
import os

import pytest
import yaml

from loffta.files.documents import MAX_DEPTH, from_json, from_yaml, read_bytes

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize("text", ["{a: 1, b: [2, x]}", "a: &x {k: 1}\nb: *x\nc:\n  <<: *x\n", "", "1e400", "- 0x10"])
def test_yaml_reads_as_the_safe_loader_does(text):
    assert from_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "stands for more than"),
        ("[" * 10_000, "nested more than"),
        ("- " * 10_000 + "x", "nested more than"),
        ("{a: " * 1_000 + "1" + "}" * 1_000, "nested more than"),
        ("&a [*a]", "stands inside its own anchor"),
        ("x: " + "y" * (1 << 20), "larger than 1 MiB"),
        ("a: [1", "expected"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
    ids=range(8),
)
def test_yaml_that_a_person_would_not_write_is_refused_in_words(text, reason):
    with pytest.raises(ValueError, match=reason):
        from_yaml(text)


def test_json_is_bounded():
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert from_json(deepest) == json.loads(deepest)
    for text in ("[" + deepest + "]", "[" * 200_000):
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            from_json(text)


def test_documents_of_others_may_be_larger_but_not_deeper():
    text = '{"a": {"b": 1}}'
    assert from_json(text, max_bytes=len(text), object_hook=lambda found: sorted(found)) == ["a"]
    with pytest.raises(ValueError, match="larger than"):
        from_json(text, max_bytes=len(text) - 1)


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises((ValueError, OSError), match=r"no regular file|Is a directory"):
            read_bytes(path)
    large = tmp_path / "large"
    large.write_bytes(b"x" * 2_000_000)
    assert len(read_bytes(large)) == 2_000_000
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_bytes(large, 1 << 20)
    assert read_bytes(large, 1 << 40) == large.read_bytes()  # a bound is no buffer
