"""`loffta` commands with one failing file operation each: a process that is started once with faults.c preloaded and
forks for every command.

Lines of JSON come in: the words, the folder below which operations count, which of them fails and how (n < 0: none).
Lines of JSON go out: exit code, stderr, how many operations there were, which one failed.
"""

import ctypes
import json
import os
import signal
import sys

PATIENCE_S = 120  # a command that takes longer hangs


def main():
    library = ctypes.CDLL(None)  # preloaded: its functions are everybody's
    library.fault_name.restype = ctypes.c_char_p
    library.fault_count.restype = ctypes.c_long
    import timm  # noqa: F401
    from loffta_cli import extract  # noqa: F401
    from loffta_cli.main import main as command

    for line in sys.stdin:
        print(json.dumps(run(library, command, **json.loads(line))), flush=True)


def run(library, command, words, folder, n, how):
    """One command in a process of its own."""
    out, err, told = (os.memfd_create(name) for name in ("out", "err", "told"))
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        os.dup2(out, 1)
        os.dup2(err, 2)
        code = 70
        try:
            library.fault_arm(folder.encode(), ctypes.c_long(n), how)
            code = command(words)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            found = library.fault_count(), library.fault_name().decode()
            library.fault_arm(b"", ctypes.c_long(-1), 0)
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(told, json.dumps(found).encode())
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count, failed = json.loads(text(told) or '[0, ""]')
    found = {"code": code, "out": text(out), "err": text(err), "count": count, "failed": failed}
    for fd in (out, err, told):
        os.close(fd)
    return found


def text(fd):
    return os.pread(fd, 1 << 20, 0).decode(errors="replace")


if __name__ == "__main__":
    main()
