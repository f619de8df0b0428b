"""`ctl`: steers a run from outside, running or not; every act is on record."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from .._journal.acts import Act, ActReply, new_act, paused_text
from .._journal.record import PAUSED
from .._journal.store import Store
from .._maintenance.steer import steer
from .._util.text import number, plural, stream_name
from ._exits import EXIT_NOT_FOUND, EXIT_USAGE, CommandError
from ._options import run_argument, store_command
from ._render import Block, CommandAnswer, Document, Pairs
from ._select import no_such_run


def _alone(do: Any) -> Callable[[Sequence[str], str], Act]:
    """Make an act that takes no arguments."""

    def make(typed: Sequence[str], why: str) -> Act:
        if typed:
            raise CommandError(f"ctl {do} takes no arguments, not {typed[0]!r}", EXIT_USAGE)
        return new_act(do, _user(), why=why)

    return make


ACTS: Mapping[str, Callable[[Sequence[str], str], Act]] = {
    do: _alone(do) for do in ("status", "pause", "resume", "stop")
}
"""What can be typed -> how the act is made of its arguments and the reason."""


@store_command(
    "ctl",
    run_argument,
    click.argument("do", metavar="ACT", type=click.Choice(list(ACTS))),
    click.argument("typed", metavar="[ARGUMENT]...", nargs=-1),
    click.option("--why", metavar="TEXT", default="", help="The reason, which the history keeps."),
)
async def ctl(
    store: Store, run_id: str, *, do: str, typed: Sequence[str], why: str
) -> CommandAnswer:
    """Steer a run: status, pause, resume, stop.

    A running run does it at once. Without one ctl does what can be done: pause and resume.
    """
    if await store.read_run(run_id) is None:
        raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
    act = ACTS[do](typed, why)
    reply = await steer(store, run_id, act)
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
    return f"{done}, {number(one['open'])} open"


def _user() -> str:
    """The name of the user, for the record of an act."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a uid without a name, as in some containers
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
