"""What belongs to others, on a shared disk: one message that names what is closed, whose it is, and what to do."""

import os
import pwd
import shutil

import pytest

from tests.survival.commands import VIT, assert_one_error, loffta

NOBODY = 65534
TRAIN = ["--head", "linear", "--set", "epochs=1", "--device", "cpu"]


def give_away(path, mode):
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that are another user's")
def test_every_command_says_whose_it_is(tmp_path, whole, extract_words, pictures):
    closed, read_only = tmp_path / "closed", tmp_path / "read-only"
    for folder in (closed, read_only):
        (folder / "x").mkdir(parents=True)
    give_away(closed, 0o700)
    give_away(read_only, 0o755)
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)
    done = give_away(next(cache.glob("done/*/grid-0/u000001.parquet")), 0o600)
    run = tmp_path / "run"
    loffta(tmp_path, "train", whole, *TRAIN, "--out", run)
    for words, deed, place in [
        ([*extract_words, closed / "c"], "entered", closed),
        ([*extract_words, read_only / "c"], "written to", read_only),
        (["extract", closed / "x", *VIT, "--cache", tmp_path / "new"], "entered", closed),
        (["info", closed / "c"], "entered", closed),
        (["verify", cache], "read", done),
        (["train", cache, *TRAIN, "--out", tmp_path / "r"], "read", done),
        (["train", whole, *TRAIN, "--out", read_only / "r"], "written to", read_only),
        (["evaluate", closed / "r"], "entered", closed),
        (["report", run, "--out", closed / "r.html"], "entered", closed),
        (["predict", run, pictures, "--out", read_only / "p.parquet", "--device", "cpu"], "written to", read_only),
    ]:
        ended = loffta(tmp_path, *words, code=1, powerless=True)
        whose = f"{place} may not be {deed} (Permission denied): it is user {pwd.getpwuid(NOBODY).pw_name}'s, "
        assert_one_error(ended, whose, str(place), "let the owner open it (`chmod`), or name another place")
