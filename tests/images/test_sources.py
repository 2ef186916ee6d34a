"""Names of image sets."""

import pytest

from loffta.errors import UsageError
from loffta.images.demo import Digits
from loffta.images.sources import SOURCES, ImageSource, open_source


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_refuses_an_unknown_name(kind):
    with pytest.raises(UsageError) as caught:
        open_source(f"{kind}:no-such-thing-anywhere")
    assert f"SOURCE {kind}:no-such-thing-anywhere" in str(caught.value)


def test_demo_digits():
    source = open_source("demo:digits")
    assert isinstance(source, Digits)
    assert isinstance(source, ImageSource)


@pytest.mark.parametrize(
    ("spec", "what", "remedy"),
    [
        ("demmo:digits", "unknown kind of image set 'demmo'", "did you mean demo?"),
        ("demo:digit", "unknown demo image set 'digit'", "did you mean digits?"),
        ("zzz:x", "unknown kind of image set 'zzz'", "known: demo"),
        (
            "photos",
            "'photos' does not say what kind of image set it is",
            "write <kind>:<what>, for example demo:digits",
        ),
        ("", "'' does not say what kind of image set it is", "write <kind>:<what>, for example demo:digits"),
    ],
)
def test_unknown_sources_name_their_neighbours(spec, what, remedy):
    with pytest.raises(UsageError) as caught:
        open_source(spec)
    assert caught.value.what == what
    assert caught.value.remedy.startswith(remedy)
    assert caught.value.where.startswith("SOURCE")
    assert caught.value.exit_code == 2
