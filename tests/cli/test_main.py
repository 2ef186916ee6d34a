"""The group `loffta`: exit codes and messages, whatever the commands do; and the one line of `--json`."""

import argparse
import array
import errno
import fcntl
import json
import os
import subprocess
import sys
import termios
import time
import types
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from loffta_cli import main as module
from loffta_cli.common import emit, json_option
from loffta_cli.main import COMMANDS, cli, main

from loffta import errors


@pytest.fixture
def fake(monkeypatch):
    """Registers a function as the command `fake`, in a module of its own as the real ones are."""

    def register(body):
        holder = types.ModuleType("loffta_cli.fake")
        holder.command = click.command("fake")(body)
        monkeypatch.setitem(sys.modules, "loffta_cli.fake", holder)
        monkeypatch.setitem(COMMANDS, "fake", (".fake:command", "Stands in for a command."))

    return register


def raising(error: BaseException):
    def body():
        raise error

    return body


@pytest.mark.smoke
@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_where_the_list_says(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.name == name
    assert command.help


@pytest.mark.smoke
def test_help_lists_every_command_with_its_line(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2].split()
    assert listed == " ".join(f"{name} {line}" for name, (_, line) in COMMANDS.items()).split()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.LofftaError, 1),
        (errors.UsageError, 2),
        (errors.TooManyBadImages, 3),
        (errors.DamageFound, 4),
        (errors.Stopped, 75),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(kind, code, fake, capsys):
    fake(raising(kind("the cache is full", where="/data/cache", remedy="run `loffta drop`")))
    assert main(["fake"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: the cache is full\n  where:  /data/cache\n  remedy: run `loffta drop`\n"


def test_notes_are_part_of_the_message(fake, capsys):
    error = errors.LofftaError("short read", where="c.0", remedy="run `loffta verify`")
    error.add_note("while reading images 512..1024")
    fake(raising(error))
    main(["fake"])
    assert capsys.readouterr().err.endswith("\n  note:   while reading images 512..1024\n")


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_adds_the_traceback(flag, fake, capsys):
    fake(raising(errors.LofftaError("no", where="here", remedy="none")))
    assert main([flag, "fake"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: no\n  where:  here\n  remedy: none\n")


@pytest.mark.parametrize(("word", "remedy"), [("extrct", "did you mean extract"), ("zzzz", "known: extract, label")])
def test_an_unknown_command_names_its_nearest(word, remedy, capsys):
    assert main([word]) == 2
    assert f"unknown command '{word}': {remedy}" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--colour"], ["fake", "--colour"], ["fake", "surplus"]])
def test_usage_errors_exit_2(args, fake, capsys):
    fake(lambda: None)
    assert main(args) == 2
    assert "Usage: loffta" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), EOFError("bug"), ValueError("bug")])
def test_a_bug_keeps_its_traceback(error, fake):
    fake(raising(error))
    with pytest.raises(type(error), match="bug"):
        main(["fake"])


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_an_error_of_the_system_is_one_message(flags, fake, capsys):
    fake(raising(OSError(errno.ESTALE, "Stale file handle", "/data/c.0")))
    assert main([*flags, "fake"]) == 1
    trace, _, said = capsys.readouterr().err.rpartition("error: ")
    assert said.startswith(
        "the disk or file server did not answer as it should (Stale file handle)\n  where:  /data/c.0\n"
    )
    assert "\n  where:  /data/c.0\n" in said
    assert trace.startswith("Traceback") == bool(flags)


def parse_surplus():
    argparse.ArgumentParser().parse_args(["surplus"])


@pytest.mark.parametrize(
    ("body", "code"), [(raising(SystemExit(0)), "0"), (raising(SystemExit()), "None"), (parse_surplus, "2")]
)
def test_code_that_ends_the_process_is_an_error(body, code, fake, capsys):
    """As that of a `custom:` backbone, or of a library; wherever it stands, its own file is named."""
    fake(body)
    assert main(["fake"]) == 1
    said = capsys.readouterr().err
    assert f"error: code that this command called ended the process: SystemExit({code})\n" in said
    assert f"  where:  {__file__}, line {body.__code__.co_firstlineno + 1}\n" in said


def test_the_completion_of_a_shell_ends_as_click_has_it(monkeypatch, capsys):
    monkeypatch.setenv("_LOFFTA_COMPLETE", "bash_source")
    assert main([]) == 0
    assert "COMP_WORDS" in capsys.readouterr().out


def test_interrupt_exits_130(fake, capsys):
    fake(raising(KeyboardInterrupt()))
    assert main(["fake"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 4])
def test_a_command_may_choose_its_exit_code(code, fake):
    fake(lambda: click.get_current_context().exit(code))
    assert main(["fake"]) == code


RUN = """
import os, sys, time, types, warnings, click
from pathlib import Path
from loffta_cli.main import COMMANDS, main
from loffta.machine.progress import Progress

def work():
    {body}

fake = types.ModuleType("fake")
fake.command = click.command("fake")(work)
sys.modules["loffta_cli.fake"] = fake
COMMANDS["fake"] = (".fake:command", "")
sys.exit(main(["fake"]))
"""
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
SPEAK = "print('on stderr', file=sys.stderr); click.echo('on stdout'); warnings.warn('a warning')"


def start(body, folder, redirect="", **options):
    """A process whose command does `body`; `redirect` is as a shell has it."""
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", RUN.replace("{body}", body)]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment = kept | options.pop("env", {})
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **options)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("write", ["click.echo('x')", "print('x')"])  # flushed at once; flushed at the end
def test_a_closed_pipe_is_quiet(write, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start(f"{write}; Path('file').touch()", tmp_path, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert finish(process) == (1, None, "")
    assert (tmp_path / "file").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("write", "environment"),
    [("click.echo('x')", {}), ("click.echo('x')", {"PYTHONUNBUFFERED": "1"}), ("print('x')", {})],
)
def test_a_full_output_is_one_line_and_ends_no_work(write, environment, tmp_path):
    body = f"{write}; Path('file').touch()"
    process = start(body, tmp_path, ">/dev/full", env=environment, stderr=subprocess.PIPE)
    said = "error: standard output cannot be written (No space left on device)\n"
    assert finish(process) == (1, None, said)
    assert (tmp_path / "file").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_stderr_is_no_error(tmp_path):
    process = start(SPEAK, tmp_path, "2>/dev/full", stdout=subprocess.PIPE)
    assert finish(process) == (0, "on stdout\n", None)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed, tmp_path):
    """A line for stderr must not go into a file, nor into the result on stdout."""
    body = (
        f"file = open('file', 'w'); assert file.fileno() > 2; {SPEAK}; file.write('mine'); assert not sys.stdin.read()"
    )
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    code, out, err = finish(start(body, tmp_path, closed, stdin=subprocess.DEVNULL, **streams))
    assert (code, out) == (0, "" if ">&-" in closed.split() else "on stdout\n"), err
    assert ("on stderr" in err) == ("2>&-" not in closed)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("bar", [False, True])
def test_a_terminal_that_goes_takes_no_work_with_it(bar, tmp_path):
    """ssh drops under a command that SIGHUP does not reach; the bar redraws itself in a thread of its own."""
    lines = [
        f"p = Progress('count', 4, 'sheep') if {bar} else None",
        "p and p.__enter__()",
        "Path('begun').touch()",
        "while os.isatty(1): time.sleep(0.01)",
        "p and p.advance(1)",
        SPEAK,
        "time.sleep(0.3)",  # the bar is drawn ten times a second
        "p and p.__exit__(None, None, None)",
        "Path('file').touch()",
    ]
    body = "\n    ".join(lines)
    terminal, side = os.openpty()
    process = start(body, tmp_path, stdin=side, stdout=side, stderr=side)
    os.close(side)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, os.read(terminal, 10000)
        time.sleep(0.01)
    os.close(terminal)
    assert finish(process)[0] == 0
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_line_for_stderr_comes_at_once(environment, tmp_path):
    process = start("print('a line', file=sys.stderr); sys.stdin.read()", tmp_path, env=environment, **PIPES)
    assert process.stderr.readline() == "a line\n"  # while the command waits
    assert finish(process) == (0, "", "")


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_an_output_that_does_not_wait_is_written_whole(environment, tmp_path):
    """Another process, such as a terminal's multiplexer, has made the pipe non-blocking."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    process = start("print('x' * 300_000)", tmp_path, env=environment, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    held = array.array("i", [0])
    while held[0] < 1 << 16:  # until it is full
        assert process.poll() is None, process.stderr.read()
        fcntl.ioctl(read_end, termios.FIONREAD, held)
    with os.fdopen(read_end) as pipe:
        assert pipe.read() == "x" * 300_000 + "\n"
    assert finish(process) == (0, None, "")


def test_without_arguments_this_process_is_asked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loffta", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"loffta {module.__version__}\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.1),
        (float("nan"), None),
        (float("-inf"), None),
        (np.float32(0.5), 0.5),
        (np.float16("inf"), None),
        (np.float64("nan"), None),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (torch.tensor(3), 3),
        (Path("a/b"), "a/b"),
        ((1, "zwei\nZüge"), [1, "zwei\nZüge"]),
        ({"a": {1: [None, True]}}, {"a": {"1": [None, True]}}),
    ],
)
def test_json_is_strict_and_one_line(value, expected, capsys):
    print("a line before")
    emit({"value": value}, True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert json.loads(lines[-1], parse_constant=pytest.fail) == {"value": expected}


def test_without_json_nothing_is_printed(capsys):
    emit({"value": 1}, False)
    assert capsys.readouterr().out == ""


def test_what_json_cannot_say_is_a_bug():
    with pytest.raises(TypeError, match="not JSON serializable"):
        emit({"value": object()}, True)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_json_option(flags, fake, capsys):
    @json_option
    def body(as_json):
        emit({"n": 1}, as_json)

    fake(body)
    assert main(["fake", *flags]) == 0
    assert capsys.readouterr().out == ('{"n": 1}\n' if flags else "")
