"""The command `loffta`: names its subcommands, imports the one that is asked for, turns errors into exit codes.

Nothing heavy is imported here, nor for `--help`: torch takes 2.4 s and timm 5 s, and a list of commands needs neither.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from loffta import __version__
from loffta.errors import LofftaError, unknown_name
from loffta.files.os_words import explain
from loffta.machine import usage
from loffta.machine.cpus import limit_pools
from loffta.machine.streams import lost_output, secure_streams
from loffta.words import printable

# name -> (where the click command is, its line in `loffta --help`); in the order of work
COMMANDS: dict[str, tuple[str, str]] = {
    "extract": (".extract:command", "Run frozen backbones over images once and cache their tokens."),
    "label": (".label:command", "Put labels, splits or groups beside the images of a cache."),
    "plan": (".plan:command", "Show what an extraction would take: bytes, files, hours."),
    "scan": (".scan:command", "Tell which backbone and which layer suit a task, in seconds."),
    "train": (".train:command", "Train a head on cached tokens."),
    "evaluate": (".evaluate:command", "Measure a trained head on a split."),
    "predict": (".predict:command", "Tell the classes of new images by a trained head."),
    "audit": (".audit:command", "Find copies, leaks, wrong labels and outliers of a cache's images."),
    "info": (".info:command", "Show what a cache holds and what it weighs."),
    "drop": (".drop:command", "Give the space of a store or an array back."),
    "pack": (".pack:pack", "Write a compressed copy of a cache, for tape, a quota or a colleague."),
    "unpack": (".pack:unpack", "Give a packed copy its fast form back, bit for bit."),
    "verify": (".verify:command", "Check a cache for damage, and repair it."),
    "report": (".report:command", "Write one HTML page about one or more runs."),
    "bench": (".bench:command", "Show where the time of a training step goes."),
    "models": (".models:command", "List backbones: short names, shapes, bytes, licences, advice."),
    "fetch": (".fetch:command", "Download weights where there is a network, for jobs where there is none."),
    "run": (".run:command", "Run a pipeline file, on this machine or on a SLURM cluster."),
    "demo": (".demo:command", "Cache, train and report on images that come with the packages."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is invoked or its own `--help` is asked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module, __package__), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is no click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            error = unknown_name("command", args[0], COMMANDS, where=ctx.command_path)
            ctx.fail(f"{error.what}: {error.remedy}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list from COMMANDS; the method of click would import every command for its help line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Add the traceback to an error's message.")
@click.version_option(__version__, prog_name="loffta", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Run frozen vision backbones once, keep their tokens, train many small heads on them."""
    ctx.ensure_object(dict)["verbose"] = verbose


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; what is caught here is what is no bug.

    Args:
        args: the words after `loffta`; None: those of this process.
    """
    secure_streams()
    if args is None:  # a process of our own: what it imports from here on asks for its threads
        limit_pools()
    code = _run(args)
    usage.keep()
    lost = lost_output()  # the work is done all the same
    if lost is None:
        return code
    if not isinstance(lost, BrokenPipeError):  # there the reader has gone, as in `loffta info | head -1`
        click.echo(f"error: standard output cannot be written ({lost.strerror})", err=True)
    return code or 1


def _run(args: Sequence[str] | None) -> int:
    options = {"verbose": False}  # filled by `cli`, which has ended when an error arrives here
    try:
        code = cli.main(args, prog_name="loffta", standalone_mode=False, obj=options)
    except LofftaError as error:
        return _tell(error, options["verbose"])
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        return _code_of_abort(abort)
    except OSError as error:
        return _tell(explain(error), options["verbose"], error)
    except SystemExit as error:
        return _code_of_exit(error, options["verbose"])
    return code if isinstance(code, int) else 0  # `ctx.exit(n)` arrives as n


def _tell(error: LofftaError, verbose: bool, cause: BaseException | None = None) -> int:
    """Prints the message, with -v behind the traceback of `cause`, and gives the exit code."""
    if verbose:
        traceback.print_exception(cause or error)
    notes = [note for source in (cause, error) if source for note in getattr(source, "__notes__", [])]
    click.echo(printable("\n  note:   ".join([f"error: {error}", *notes]), keep="\n"), err=True)
    return error.exit_code


def _code_of_exit(error: SystemExit, verbose: bool) -> int:
    """click's own exits arrive as a number; this one is of a user's code or a library, and the command is not done."""
    frames = traceback.extract_tb(error.__traceback__)
    if "/click/" in frames[-1].filename:  # but for what it prints for the shell's completion
        return error.code if isinstance(error.code, int) else 1
    last = next((f for f in reversed(frames) if Path(f.filename).parent != Path(os.__file__).parent), frames[-1])
    wanted = LofftaError(
        f"code that this command called ended the process: SystemExit({error.code!r})",
        where=f"{last.filename}, line {last.lineno}",
        remedy="an exception in its place would say what is wrong; -v before the command shows how it came there",
    )
    return _tell(wanted, verbose, error)


def _code_of_abort(abort: click.Abort) -> int:
    """130 for Ctrl-C, as shells have it. click wraps every EOFError too, and one from a reader is a bug."""
    if isinstance(abort.__cause__, EOFError):
        raise abort.__cause__
    click.echo("interrupted", err=True)
    return 130
