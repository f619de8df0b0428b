"""A program that stops itself before it gets further than a test allows.

    python -m tests.leash BATCHES (-m MODULE | PATH) [ARGUMENT ...]

A test that kills a program waits for some progress and looks at it again and again.  On a fast
machine, or while the test itself has no processor, the work may be over before the test looks.  A
program on a leash sends itself SIGSTOP when it hands out a batch for the BATCHES-th time, so it is
there to be killed, however late the kill comes.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from trio_ckpt._commit.gate import Gate


def leashed(batches: int, *program: str) -> list[str]:
    """The command of a program that stops itself at a batch.

    Args:
        batches: How many it hands out; it stops at the last one.
        program: ``-m`` and a module, or the path of a file; and its arguments.
    """
    return [sys.executable, "-m", "tests.leash", str(batches), *program]


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP; False: it runs, or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")
    except OSError:
        return False


def stop_here() -> None:
    """Stop this process; it goes on after SIGCONT."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # takes hold before it returns


def main(batches: str, *program: str) -> None:
    """Run the program in this process."""
    left, hand_out = int(batches), Gate.hand_out

    def count(self: Gate, *found: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            stop_here()
        return hand_out(self, *found)

    Gate.hand_out = count  # type: ignore[method-assign]  # this process does nothing else
    if program[0] == "-m":
        sys.argv = list(program[1:])
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(program)
        sys.path[0] = os.path.dirname(os.path.abspath(program[0]))
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
