"""`ctl`: steers a run from outside, running or not; every act is on record."""

from __future__ import annotations

import getpass
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from .._journal.acts import Act, ActReply, new_act, paused_text
from .._journal.record import PAUSED
from .._journal.store import Store
from .._maintenance.steer import steer
from .._util.text import number, plural, stream_name
from ._change import parse_batches
from ._exits import EXIT_NOT_FOUND, EXIT_USAGE, CommandError
from ._options import run_argument, store_command
from ._render import Block, CommandAnswer, Document, Pairs
from ._select import choose_stream, no_such_run, read_status

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "status": (),
    "pause": (),
    "resume": (),
    "stop": (),
    "snapshot": (),
    "requeue": ("STREAM", "BATCHES"),
    "skip": ("STREAM", "BATCHES"),
    "concurrency": ("N",),
    "limit": ("NAME=NUMBER",),
}
"""What can be typed -> the arguments after it."""


async def _act(store: Store, run_id: str, do: Any, typed: Sequence[str], why: str) -> Act:
    """Make an act of what is typed.

    Raises:
        CommandError: arguments are missing or too many, or name nothing that the run has.
    """
    wanted = ARGUMENTS[do]
    if len(typed) != len(wanted):
        takes = f"takes {' '.join(wanted)}" if wanted else "takes no arguments"
        raise CommandError(f"ctl {do} {takes}; {len(typed)} were typed", EXIT_USAGE)
    about: dict[str, Any] = {}
    if "STREAM" in wanted:
        keys = (await read_status(store, run_id)).keys
        about = {
            "stream": choose_stream(keys, typed[0]),
            "indexes": parse_batches(typed[1], "BATCHES"),
        }
    elif do == "concurrency":
        about = {"count": _number(typed[0], int, 1)}
    elif do == "limit":
        name, _, most = typed[0].partition("=")
        about = {"amounts": {name: _number(most, float, 0)}}
    return new_act(do, _user(), why=why, **about)


def _number(text: str, kind: Callable[[str], float], least: float) -> float:
    """A number that was typed; a float that is whole becomes an int.

    Raises:
        CommandError: it is none, or too small.
    """
    try:
        found = kind(text)
    except ValueError:
        found = math.nan
    if not least <= found < math.inf:
        raise CommandError(f"{text!r} is not a number from {number(least)} on", EXIT_USAGE)
    return int(found) if found < 2**53 and found == int(found) else found


@store_command(
    "ctl",
    run_argument,
    click.argument("do", metavar="ACT", type=click.Choice(list(ARGUMENTS))),
    click.argument("typed", metavar="[ARGUMENT]...", nargs=-1),
    click.option("--why", metavar="TEXT", default="", help="The reason, which the history keeps."),
)
async def ctl(
    store: Store, run_id: str, *, do: str, typed: Sequence[str], why: str
) -> CommandAnswer:
    """Steer a run, running or not; every act is on record.

    \b
    ACT is one of
      status, pause, resume, stop, snapshot
      requeue STREAM BATCHES, skip STREAM BATCHES  (such as 17,203-210)
      concurrency N
      limit NAME=NUMBER                            (such as cost_usd=80, runtime_s=3600)

    A running run does it at once. Where no process runs it, ctl itself does pause, resume,
    requeue and skip.
    """
    if await store.read_run(run_id) is None:
        raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
    reply = await steer(store, run_id, await _act(store, run_id, do, typed, why))
    said = {"store": store.url, "run": run_id, "act": do, "text": reply.text}
    document: Document = {**said, "status": reply.status} if do == "status" else said
    return CommandAnswer(lambda: document, lambda: _blocks(run_id, reply))


def _blocks(run_id: str, reply: ActReply) -> Sequence[Block]:
    if not reply.status:
        return [f"run {run_id!r}: {reply.text}"]
    status, pairs = reply.status, [("run", run_id), ("status", reply.text)]
    if paused := paused_text(status):
        pairs.append((PAUSED, paused))
    if status["stopping"] is not None:
        waits_for = plural(status["stopping"]["open"], "open batch")
        pairs.append(("stopping", f"waits for {waits_for}"))
    pairs += [(f"limit {name}", str(most)) for name, most in status["limits"].items()]
    pairs += [(stream_name(one["stream"]), _stream_text(one)) for one in status["streams"]]
    return [Pairs(pairs)]


def _stream_text(one: Mapping[str, Any]) -> str:
    left = "unknown" if one["left"] is None else number(one["left"])
    done = f"{number(one['confirmed'])} done, {number(one['skipped'])} skipped, {left} left"
    workers = one.get("concurrency")
    at_once = "" if workers is None else f", {plural(workers, 'worker')}"
    return f"{done}, {number(one['open'])} open{at_once}"


def _user() -> str:
    """The name of the user, for the record of an act."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a uid without a name, as in some containers
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
