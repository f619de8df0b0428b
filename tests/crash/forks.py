"""Starting `tests.crash.steady`, and what becomes of it.

A `Zygote` is a process that has imported everything and forks for each start, so a start costs
milliseconds.  What it forks is a process like any other: it is killed, stopped and woken by its id.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import attrs

from tests.crash.steady import ROOT, Orders, run_program

LIMIT_S = 60.0  # for whatever a sweep waits for; nothing takes a second
PR_SET_PDEATHSIG = 1


@attrs.define(eq=False)
class Process:
    """One that a zygote has forked.

    Attributes:
        pid: Its id.
        tag: Of its orders.
        lines: What it has said and was read.
        code: Its exit code once it has ended, as `subprocess.Popen.returncode`.
    """

    pid: int
    tag: str
    lines: list[str] = attrs.field(factory=list[str], init=False)
    code: int | None = attrs.field(default=None, init=False)
    _input: int
    _output: int
    _events: int
    _rest: bytes = attrs.field(default=b"", init=False)
    _seen: list[str] = attrs.field(factory=list[str], init=False)
    _is_at_end: bool = attrs.field(default=False, init=False)

    def times(self, word: str) -> dict[int, int]:
        """When it said a word, by the numbers that came with it; `time.monotonic_ns`."""
        found = [text.split() for text in self.lines]
        return {int(parts[1]): int(parts[-1]) for parts in found if parts[0] == word}

    def release(self) -> None:
        """Let it begin, if it waits."""
        os.write(self._input, b"\n")

    def send(self, number: int) -> None:
        """Send it a signal; one that has ended does not mind."""
        if self.code is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                self.wait()

    def said(self, word: str) -> list[int]:
        """The numbers that came with a word, ``confirmed`` say, in what was read so far."""
        return [int(text.split()[1]) for text in self.lines if text.split()[0] == word]

    def read(self, timeout_s: float = 0.0) -> bool:
        """Read what it says, and waits up to so long for something; False: there is nothing."""
        if self._is_at_end or not select.select([self._output], [], [], timeout_s)[0]:
            return False
        data = os.read(self._output, 2**16)
        self._is_at_end = not data
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines += [text.decode() for text in whole]
        return bool(data)

    def read_until(self, is_enough: Callable[[], bool], patience_s: float = LIMIT_S) -> bool:
        """Read until it is enough; False: it ended before, or patience did.

        Raises:
            AssertionError: it took too long.
        """
        started = time.monotonic()
        while not is_enough():
            if self._is_at_end:
                return False
            if time.monotonic() - started > patience_s:
                if patience_s < LIMIT_S:
                    return False
                raise AssertionError(f"process {self.pid} is silent after {self.lines[-3:]}")
            self.read(min(patience_s, 0.5))
        return True

    def read_all(self) -> None:
        """Read until it has nothing more to say."""
        self.read_until(lambda: self._is_at_end)

    def wait_stopped(self) -> bool:
        """Wait until SIGSTOP has taken hold of it; False: it has ended instead."""
        while self.code is None:
            if self._next_event() == "stopped":
                return True
        return False

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        while self.code is None:
            self._next_event()
        return self.code

    def close(self) -> None:
        """Kill it if it lives, and release it."""
        self.send(signal.SIGKILL)
        self.wait()
        self.read_all()
        for fd in (self._input, self._output, self._events):
            os.close(fd)

    def _next_event(self) -> str:
        while not self._seen:
            if not select.select([self._events], [], [], LIMIT_S)[0]:
                raise AssertionError(f"process {self.pid} does not end: {self.lines[-3:]}")
            self._seen += os.read(self._events, 4_096).decode().splitlines()
        event = self._seen.pop(0)
        if event.startswith("exit "):
            self.code = int(event.removeprefix("exit "))
        return event


class Zygote:
    """A process that has imported everything, and forks; use it as a context manager."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.forks", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._server.wait(LIMIT_S)

    def start(self, orders: Orders) -> Process:
        """Start a process."""
        pipes = [os.pipe() for _ in range(3)]
        (in_read, in_write), (out_read, out_write), (event_read, event_write) = pipes
        message = json.dumps(attrs.asdict(orders)).encode()
        socket.send_fds(self._socket, [message], [in_read, out_write, event_write])
        for fd in (in_read, out_write, event_write):
            os.close(fd)
        process = Process(0, orders.tag, in_write, out_read, event_read)
        process.pid = int(process._next_event())
        return process


def serve(number: int) -> None:
    """What a zygote does: fork for each order, until no order is left."""
    logging.disable()  # a sweep makes trouble by the thousand
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that watch are reaped by the kernel
    with socket.socket(fileno=number) as orders:
        while True:
            message, fds, _, _ = socket.recv_fds(orders, 2**16, 3)
            if not message:
                return
            if os.fork() == 0:
                orders.close()
                _watch(Orders(**json.loads(message)), *fds)
            for fd in fds:
                os.close(fd)


def _watch(orders: Orders, fd_in: int, fd_out: int, fd_events: int) -> None:
    """Fork the process, and say what becomes of it."""
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _die_with_parent()
        os.dup2(fd_in, 0)
        os.dup2(fd_out, 1)
        for fd in (fd_in, fd_out, fd_events):
            os.close(fd)
        code = run_program(orders)
        os._exit(code)
    os.close(fd_in)
    os.close(fd_out)
    os.write(fd_events, b"%d\n" % pid)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            os.write(fd_events, b"stopped\n" if os.WIFSTOPPED(status) else b"woken\n")
            continue
        os.write(fd_events, b"exit %d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)


def _die_with_parent() -> None:
    """So that a sweep that is killed leaves nothing behind, stopped processes least of all."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
