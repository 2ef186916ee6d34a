"""Every error of a file operation has words, a file and a remedy; whose it is where somebody may not use it."""

import errno
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from loffta.errors import LofftaError
from loffta.files.os_words import explain, guard

NUMBERS = [
    *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENAMETOOLONG", "EMFILE", "ENFILE"),
    *("ENOSYS", "EOPNOTSUPP", "EINVAL", "ENOTDIR", "EISDIR", "ELOOP", "ENOENT", "EBUSY", "ETIMEDOUT", "EHOSTDOWN"),
    *("EEXIST", "ENOTEMPTY", "EXDEV", "ENOMEM"),
]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_words_of_its_own(name):
    number = getattr(errno, name)
    error = explain(OSError(number, "not shown", "/data/cache/c.0"))
    assert os.strerror(number) in error.what
    assert not error.what.startswith("the system refused")
    assert error.where == "/data/cache/c.0"
    assert "-v" not in error.remedy


@pytest.mark.parametrize(
    ("number", "what", "remedy"),
    [
        (errno.ENOSPC, "no space left", "free space or raise the quota"),
        (errno.EFBIG, "`ulimit -f` says how large", "same command again"),
        (errno.EMFILE, f"limit is {os.sysconf('SC_OPEN_MAX')}", "ulimit -n"),
        (errno.EROFS, "nothing can be written here", "name another one"),
        (errno.EIO, "did not answer as it should", "loffta verify"),
        (errno.ENOTDIR, "a file is where this folder should be", "move the file"),
        (errno.ENOTSUP, "this file system cannot", "another file system"),
    ],
)
def test_the_remedy_fits(number, what, remedy):
    error = explain(OSError(number, os.strerror(number)), Path("here"))
    assert what in error.what
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ((errno.EIO, "x", "/a"), "/a"),
        ((errno.EIO, "x", b"/\xff"), "/\udcff"),
        ((errno.EIO, "x", "/part", None, "/final"), "/final"),
        ((errno.EIO, "x", 7), "a file that the system did not name"),
        ((errno.EIO, "x"), "a file that the system did not name"),
        ((errno.ENAMETOOLONG, "x", "/" + "a" * 5000), "/" + "a" * 299 + "..."),
    ],
)
def test_where_is_what_the_error_names(arguments, where):
    assert explain(OSError(*arguments)).where == where
    assert explain(OSError(*arguments), "told").where == "told"


def test_an_error_without_a_number_keeps_its_text():
    error = explain(OSError("decoder \x1b[31m"), "x.png")
    assert error.what == "OSError: decoder \N{REPLACEMENT CHARACTER}[31m"


def test_a_current_folder_that_has_been_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("x").absolute()
    assert explain(caught.value).what == "the current folder has been deleted"


def test_guard_lets_other_errors_and_our_own_pass(tmp_path):
    for passing in (LofftaError("a", where="b", remedy="c"), ZeroDivisionError()):
        with pytest.raises(type(passing)) as caught, guard(tmp_path):
            raise passing
        assert caught.value is passing
    with pytest.raises(LofftaError, match=r"no such file") as caught, guard(tmp_path / "x"):
        (tmp_path / "x").read_bytes()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


CHILD = """
import os, sys
from loffta.files.os_words import guard
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path, mode in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        with guard(path):
            open(path, mode)
    except Exception as error:
        print(repr(error.what))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that are another user's")
def test_whose_it_is_and_what_may_not_be_done():
    """A process of `nobody` before what is root's, under /tmp: pytest's own folder may not be entered by others."""
    import tempfile

    nobody = pwd.getpwuid(65534).pw_name
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "closed" / "deep").mkdir(parents=True)
        (root / "closed").chmod(0o700)
        (root / "secret").touch(0o600)
        (root / "secret").chmod(0o600)
        (root / "shown").write_text("x")
        tries = [("closed/deep/x", "r"), ("secret", "r"), ("shown", "a"), ("new", "w")]
        words = [str(word) for path, mode in tries for word in (root / path, mode)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, env=env, check=True
        )
    said = [eval(line) for line in done.stdout.splitlines()]
    me = f"and this process runs as user {nobody}"
    assert said == [
        f"{root}/closed may not be entered (Permission denied): it is user root's, drwx------, {me}",
        f"{root}/secret may not be read (Permission denied): it is user root's, -rw-------, {me}",
        f"{root}/shown may not be written to (Permission denied): it is user root's, -rw-r--r--, {me}",
        f"{root} may not be written to (Permission denied): it is user root's, drwxr-xr-x, {me}",
    ]
