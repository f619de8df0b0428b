"""A program that goes on after anything, for the sweeps from outside, and what starts it.

Each batch writes a file, appends a line, changes a state that is large enough for a blob, and is
said to be confirmed on standard output when `Batch.confirm` has returned.  What it writes depends
on the batch alone, and on a tag where a sweep must know who wrote it.

A `Zygote` is a process that has imported everything and forks for each start, so a start costs
milliseconds.  What it forks is a process like any other: it is killed, stopped and woken by its id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

import trio_ckpt
from trio_ckpt import RunLockedError, RunStoppedError, _saver, _staging
from trio_ckpt.cli._exits import EXIT_OWNED
from trio_ckpt.outputs import _append, _system
from trio_ckpt.stores import JsonStore, SqliteStore, _json_writer, _sqlite_writer

ROOT = Path(__file__).parents[2]
RUN = "steady"
STREAM = ("pages",)
LINES = "lines.jsonl"
INLINE_LIMIT_BYTES = 4_096  # so that the state is a blob
EXIT_ERROR = 1
LIMIT_S = 60.0  # for whatever a sweep waits for; nothing takes a second
OWNER_AGE_S = 0.02  # in place of the library's, so that a sweep need not let anybody sleep long
PR_SET_PDEATHSIG = 1

KINDS = {"sqlite": SqliteStore, "json": JsonStore}


@attrs.frozen
class Orders:
    """What a process is to do.

    Attributes:
        url: Of the store.
        out: The folder of the outputs.
        batches: How many.
        tag: Goes into everything that is written.
        pause_s: How long a batch takes.
        appends: Whether each batch appends a line.
        waits: Until a byte comes on standard input.
        stop_at: Stop by SIGSTOP there, see `POINTS`; empty: nowhere.
        stop_index: At which batch.
        flaw: What is broken on purpose: one of `FLAWS`, or `OWNERS_FLAW`; empty: nothing.
    """

    url: str
    out: str
    batches: int
    tag: str = ""
    pause_s: float = 0.0
    appends: bool = True
    waits: bool = False
    stop_at: str = ""
    stop_index: int = 0
    flaw: str = ""


def page_name(index: int) -> str:
    """The output of a batch."""
    return f"pages/{index % 4}/{index:03}.txt"


def page(index: int, tag: str) -> bytes:
    """What is in it; from a few bytes to a few pages of memory."""
    text = hashlib.sha256(b"%d" % index).hexdigest()
    return f"{tag} {index} {text}\n".encode() * (1 + index * 97 % 150)


def line(index: int, tag: str) -> bytes:
    """What a batch appends."""
    filler = "." * (index * 31 % 60)
    row = {"filler": filler, "index": index, "tag": tag}
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def padding(index: int) -> str:
    """What makes the state large, another one after each batch."""
    return "".join(hashlib.sha512(b"%d %d" % (index, n)).hexdigest() for n in range(48))


# -- the program ----------------------------------------------------------------------------


def say(text: str) -> None:
    """One line for whoever has started this process; who is gone does not mind."""
    os.write(1, text.encode() + b"\n")


async def work(orders: Orders, points: Points) -> int:
    """The program."""
    scheme, _, folder = orders.url.partition(":")
    durability = "process" if orders.flaw == "not synced" else "full"
    store = await KINDS[scheme].open(
        Path(folder), inline_limit_bytes=INLINE_LIMIT_BYTES, durability=durability
    )
    async with (
        trio_ckpt.open_run(RUN, store=store, output_dir=orders.out) as run,
        run.open_stream(*STREAM, state={"sum": 0, "padding": ""}) as stream,
    ):
        say("owner")
        async for batch in stream.batches(range(orders.batches)):
            await work_at(batch, stream, orders, points)
    code = run.exit_code
    await store.aclose()
    return code


async def work_at(batch: Any, stream: Any, orders: Orders, points: Points) -> None:
    """One batch."""
    index, tag = batch.index, orders.tag
    points.index = index
    say(f"begun {index}")
    points.reach("body")
    await trio.sleep(orders.pause_s)
    await batch.write_bytes(page_name(index), page(index, tag))
    if orders.appends:
        batch.append_json(LINES, json.loads(line(index, tag)))
    stream.state["sum"] += index
    stream.state["padding"] = padding(index)
    batch.complete(records=1, metadata={"tag": tag, "sum": stream.state["sum"]})
    if orders.flaw == "said early":
        say(f"confirmed {index}")
    await batch.confirm()
    points.reach("confirmed")
    if orders.flaw != "said early":
        say(f"confirmed {index}")


OWNERS_FLAW = "owner not asked"  # before files are changed, nor are they locked
FLAWS = ("output not synced", "said early", "not synced")
POINTS = ("body", "rename", "append", "pwrite", "save", "commit", "saved", "confirmed")


@attrs.define
class Points:
    """Where the process stops itself, once, as if somebody had sent SIGSTOP just then."""

    stop_at: str
    stop_index: int
    index: int = -1

    def reach(self, point: str) -> None:
        """Take note of where the process is."""
        if point and point == self.stop_at and self.index == self.stop_index:
            self.stop_at = ""
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # takes hold at once

    def install(self) -> None:
        """Have the library come by, in whatever thread."""
        before = [
            (_system.System, "rename", "rename"),
            (_append.AppendFile, "append", "append"),
            (_append, "write_all", "pwrite"),
            (_sqlite_writer.Writer, "save", "save"),
            (_json_writer.Writer, "save", "save"),
            (_sqlite_writer.Writer, "_commit", "commit"),
            (_json_writer, "write_all", "commit"),
        ]
        after = [(_sqlite_writer.Writer, "save"), (_json_writer.Writer, "save")]
        for place, name, point in before:
            setattr(place, name, self._with(getattr(place, name), point, ""))
        for place, name in after:
            setattr(place, name, self._with(getattr(place, name), "", "saved"))

    def _with(self, func: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reach(before)
            result = func(*args, **kwargs)
            self.reach(after)
            return result

        return call


def run_program(orders: Orders) -> int:
    """Run it as a process of its own does: the exit code."""
    points = Points(orders.stop_at, orders.stop_index)
    _staging.OWNER_AGE_S = OWNER_AGE_S
    if orders.stop_at:
        points.install()
    if orders.flaw == "output not synced":
        for name in ("fsync", "fdatasync"):
            setattr(_system.System, name, lambda _system, _fd: None)
    if orders.flaw == OWNERS_FLAW:
        _system.System.lock = lambda _system, _fd: None  # type: ignore[method-assign]
        _saver.Saver.check_owner = _ask_nobody  # type: ignore[method-assign]
    if orders.waits:
        os.read(0, 1)
    try:
        return trio.run(work, orders, points)
    except RunLockedError as error:
        say(f"locked {error.pid} {error}")
        return EXIT_OWNED
    except RunStoppedError as error:
        say(f"stopped {error.exit_code} {error.__cause__!r}")
        return error.exit_code
    except Exception as error:
        say(f"error {type(error).__name__}: {error} (from {error.__cause__!r})")
        return EXIT_ERROR


async def _ask_nobody(_saver: object, _max_age_s: float = 0.0) -> None:
    """In place of `Saver.check_owner`."""


# -- starting it ----------------------------------------------------------------------------


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
        """Kill it if it lives, and let go of it."""
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
                [sys.executable, "-m", "tests.crash.steady", str(theirs.fileno())],
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
    """What a zygote does: fork for each order, until nobody has orders any more."""
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
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
