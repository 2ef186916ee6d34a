"""Options of the smallest extraction, and what an error must say."""

# timm's own test models: seconds become milliseconds
VIT = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32"]
SMALL = ["--limit", "6", "--unit-images", "4", "--device", "cpu"]


def assert_error(result, code, *parts):
    """One message in three parts on stderr, which holds `parts` in this order; nothing on stdout."""
    found, out, err = result
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert "\n  where:  " in err
    assert "\n  remedy: " in err
    place = 0
    for part in parts:
        assert part in err[place:], f"{part!r} in {err!r}"
        place = err.index(part, place)
