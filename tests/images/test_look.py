"""What a user may say of background and range, in one spelling; what is absent is as of old."""

import pytest

from loffta.look import OLD, Look, look_fields, look_of, parse_background, parse_range


@pytest.mark.parametrize(
    ("text", "found"),
    [("white", "#ffffff"), ("Black", "#000000"), ("gray", "#808080"), ("grey", "#808080"), ("#0AF0ff", "#0af0ff")],
)
def test_a_background_has_one_spelling(text, found):
    assert parse_background(text) == found


@pytest.mark.parametrize("text", ["", "whit", "#fff", "#12345g", "0,0,0", "#ffffff\n"])
def test_other_backgrounds_are_refused(text):
    with pytest.raises(ValueError, match="it must be white, black, grey or #rrggbb"):
        parse_background(text)


@pytest.mark.parametrize(
    ("text", "found", "limits"),
    [
        ("auto", "auto", None),
        ("clip", "clip", None),
        ("0..4095", "0..4095", (0, 4095)),
        ("0.0..1.", "0..1", (0, 1)),
        ("-1..+1e0", "-1..1", (-1, 1)),
        (".1..0.25", "0.1..0.25", (0.1, 0.25)),
    ],
)
def test_a_range_has_one_spelling(text, found, limits):
    assert parse_range(text) == found
    assert parse_range(found) == found
    assert Look(range=found).limits == limits


@pytest.mark.parametrize("text", ["", "0..0", "1..0", "0-4095", "0..nan", "0..1e400", "0...5..1", "AUTO", "0..1\n"])
def test_other_ranges_are_refused(text):
    with pytest.raises(ValueError, match=r"it must be auto, clip, or two numbers"):
        parse_range(text)


def test_recipes_of_old_say_nothing_and_keep_their_hash():
    assert look_of({}) == OLD == Look("#000000", "clip")
    assert look_fields(OLD) == {}
    assert look_fields(Look()) == {"background": "#ffffff", "range": "auto"}
    with pytest.raises(ValueError, match="it must be white"):
        look_of({"background": 3})
    assert look_of(look_fields(Look("#000000", "0..1"))) == Look("#000000", "0..1")


def test_a_colour():
    assert Look("#0a10ff").colour == (10, 16, 255)
