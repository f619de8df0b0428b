"""The commands that only read the store, as they are typed."""

from __future__ import annotations

import sys
import time
from functools import partial

import click
import trio

from . import _overview, _tell, _watch
from ._look import reading
from ._options import (
    all_option,
    answer,
    json_option,
    limit_option,
    run_argument,
    store_argument,
    stream_option,
)


@click.command("ls")
@store_argument
@json_option
def ls_command(store: str, as_json: bool) -> int:
    """List the runs of a store."""
    return answer(store, partial(_overview.list_runs, now=time.time()), as_json=as_json)


@click.command("show")
@store_argument
@run_argument(required=False)
@stream_option
@all_option
@json_option
def show_command(
    store: str, run: str | None, stream: str | None, every: bool, as_json: bool
) -> int:
    """Show where a run stands: totals, phases, groups, streams."""
    ask = partial(_overview.show_run, run_id=run, stream=stream, every=every)
    return answer(store, ask, as_json=as_json)


@click.command("watch")
@store_argument
@run_argument(required=False)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="How often to look; default: 1 on a terminal, 10 elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on each line.")
def watch_command(store: str, run: str | None, every_s: float | None, as_json: bool) -> int:
    """Watch a run until its process releases it, or a job until all its items are done.

    Exits as the program should then: 0 complete, 3 complete but for what was skipped, 75 with
    work left.
    """

    async def main() -> int:
        async with reading(store) as opened:
            return await _watch.watch(
                opened, run, every_s=every_s, as_json=as_json, file=sys.stdout
            )

    return trio.run(main)


@click.command("explain")
@store_argument
@run_argument(required=False)
@stream_option
@all_option
@json_option
def explain_command(
    store: str, run: str | None, stream: str | None, every: bool, as_json: bool
) -> int:
    """Say in words what a start would do, and why."""
    ask = partial(_tell.explain, run_id=run, stream=stream, every=every, now=time.time())
    return answer(store, ask, as_json=as_json)


@click.command("history")
@store_argument
@run_argument(required=False)
@stream_option
@limit_option
@json_option
def history_command(
    store: str, run: str | None, stream: str | None, limit: int, as_json: bool
) -> int:
    """List the sessions of a run, or with --stream the checkpoints of a stream."""
    if stream is None:
        return answer(store, partial(_tell.tell_sessions, run_id=run, limit=limit), as_json=as_json)
    ask = partial(_tell.tell_checkpoints, run_id=run, stream=stream, limit=limit)
    return answer(store, ask, as_json=as_json)
