"""A program that goes on after anything, for the sweeps from outside.

Each batch writes a file, appends a line, changes a state that is large enough for a blob, and is
said to be confirmed on standard output when `Batch.confirm` has returned.  What it writes depends
on the batch alone, and on a tag where a sweep must know who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

import trio_ckpt
from trio_ckpt import RunLockedError, RunStoppedError
from trio_ckpt._commit import group_commit, stream_outputs
from trio_ckpt.cli._exits import EXIT_OWNED
from trio_ckpt.outputs import _append, _system
from trio_ckpt.stores import JsonStore, SqliteStore
from trio_ckpt.stores._json import journal, writer
from trio_ckpt.stores._sqlite import writer as _sqlite_writer

ROOT = Path(__file__).parents[2]
RUN = "steady"
STREAM = ("pages",)
LINES = "lines.jsonl"
INLINE_LIMIT_BYTES = 4_096  # so that the state is a blob
EXIT_ERROR = 1
OWNER_AGE_S = 0.02  # in place of the library's, so that a sweep need not let an owner sleep long

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


def say(text: str) -> None:
    """One line for the parent of this process, with the time; it is the same for all."""
    os.write(1, f"{text} {time.monotonic_ns()}\n".encode())


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
OF_SAVES = ("save", "commit", "saved")


@attrs.define
class Points:
    """Where the process stops itself, once, as if another process had sent SIGSTOP."""

    stop_at: str
    stop_index: int
    index: int = -1
    is_asking: bool = False  # who owns the run: a save of nothing is no save

    def reach(self, point: str) -> None:
        """Take note of where the process is."""
        if self.is_asking and point in OF_SAVES:
            return
        if point and point == self.stop_at and self.index == self.stop_index:
            self.stop_at = ""
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # takes hold at once

    def install(self) -> None:
        """Have the library come by, in whatever thread."""
        before = [
            (_system.System, "rename", "rename"),
            (_append.AppendFile, "append", "append"),
            (_append, "write_all", "pwrite"),
            (_sqlite_writer.SqliteWriter, "save", "save"),
            (writer.JsonWriter, "save", "save"),
            (_sqlite_writer.SqliteWriter, "_commit", "commit"),
            (journal, "write_all", "commit"),
        ]
        after = [(_sqlite_writer.SqliteWriter, "save"), (writer.JsonWriter, "save")]
        for place, name, point in before:
            setattr(place, name, self._with(getattr(place, name), point, ""))
        for place, name in after:
            setattr(place, name, self._with(getattr(place, name), "", "saved"))

    def _with(self, func: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if {before, after} & {"save", "saved"}:
                self.is_asking = not args[2]
            self.reach(before)
            result = func(*args, **kwargs)
            self.reach(after)
            return result

        return call


def run_program(orders: Orders) -> int:
    """Run it as a process of its own does: the exit code."""
    points = Points(orders.stop_at, orders.stop_index)
    stream_outputs.OWNER_AGE_S = OWNER_AGE_S
    if orders.stop_at:
        points.install()
    if orders.flaw == "output not synced":
        for name in ("fsync", "fdatasync"):
            setattr(_system.System, name, lambda _system, _fd: None)
    if orders.flaw == OWNERS_FLAW:
        _system.System.lock = lambda _system, _fd: None  # type: ignore[method-assign]
        group_commit.GroupCommitter.check_owner = _check_no_owner  # type: ignore[method-assign]
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


async def _check_no_owner(_committer: object, _max_age_s: float = 0.0) -> None:
    """In place of `GroupCommitter.check_owner`."""
