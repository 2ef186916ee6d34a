"""Functions in processes of their own, which a test can watch, signal and kill.

A fork server imports torch and timm once; each process is then forked from it in milliseconds, where a new interpreter
takes seconds. From there on it is the same: its own process, signals, streams and exit code; no pytest and no hook of
jaxtyping in it.
"""

import multiprocessing
import os
import sys

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "timm",
        "loffta.extraction.repair",
        "loffta.training.train",
        "loffta.reporting",
        "loffta_cli.main",
        "loffta_cli.extract",
        "tests.fakes",
        "tests.survival.commands",
    ]
)
PATIENCE_S = 300  # a process that takes longer hangs; nothing is asserted about its speed


class Forked:
    """`function(*args)` in a process, from the moment it is made; what it returns is the exit code.

    The function is found by its name: it stands at the top of a module. Streams, signals and codes are named as in
    `subprocess.Popen`. What is not read while the process runs must fit into a pipe, 64 KiB.
    """

    def __init__(self, function, *args):
        ends = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        job = ([writer for _, writer in ends], dict(os.environ), function, args)
        self._process = CONTEXT.Process(target=_run, args=job, daemon=True)
        self._process.start()
        for _, writer in ends:
            writer.close()  # the process's own is the last: where it ends, so does the stream
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in ends)
        for reader, _ in ends:
            reader.close()

    @property
    def returncode(self):
        return self._process.exitcode

    @property
    def pid(self):
        return self._process.pid

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self):
        """What it still says on stdout and stderr, when it has ended."""
        self._process.join(PATIENCE_S)
        hangs = self.returncode is None
        if hangs:
            self.kill()
            self._process.join()
        with self.stdout, self.stderr:
            out, err = self.stdout.read(), self.stderr.read()
        assert not hangs, f"it hangs: {out}{err}"
        return out, err


def _run(streams, environment, function, args):
    """The body of the process; of itself it has the environment in which the fork server was started."""
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115  as a new process has them
    sys.exit(function(*args))
