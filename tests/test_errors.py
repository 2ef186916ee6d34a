"""Errors say what, where and what to do, and near names are really near."""

import pytest

from loffta.errors import DamageFound, LofftaError, Stopped, TooManyBadImages, UsageError, unknown_name


def test_message_has_what_where_and_remedy():
    error = LofftaError("no space left", where="/data/cache", remedy="free some")
    assert str(error) == "no space left\n  where:  /data/cache\n  remedy: free some"


@pytest.mark.parametrize(
    ("kind", "code"), [(LofftaError, 1), (UsageError, 2), (TooManyBadImages, 3), (DamageFound, 4), (Stopped, 75)]
)
def test_exit_codes(kind, code):
    assert kind("what", where="here", remedy="this").exit_code == code


def test_unknown_name_gives_the_nearest():
    error = unknown_name("tap", "stage.3", ["stages.2", "stages.3", "blocks.0"], where="--taps")
    assert error.what == "unknown tap 'stage.3'"
    assert error.remedy.startswith("did you mean stages.3")
    assert error.exit_code == 2


def test_unknown_name_lists_few_known_names_where_none_is_near():
    assert unknown_name("head", "zzz", ["linear", "combo"], where="head").remedy == "known: linear, combo"


def test_unknown_name_does_not_flood_the_terminal():
    known = [f"model_{i}" for i in range(1000)]
    assert unknown_name("backbone", "zzz", known, where="x").remedy == (
        "none of the 1000 known names is close; check the spelling"
    )
