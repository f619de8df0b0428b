"""`watch`: a run while it goes on in another process, until that process releases it.

Its rate and ETA are of the time since it was started; those of the monitor are the owner's, see
`trio_ckpt._runs.statistics`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

import attrs
import click
import trio

from .._journal.live_view import LiveView
from .._journal.record import Status
from .._journal.statistics import eta_s, rate_per_s, stuck_after_s
from .._journal.store import Store
from .._journal.summary import RunStatus, Summary, current_phase
from .._util.screen import console_for
from .._util.text import amounts, duration, number, plural
from ._app import app
from ._options import any_run_argument, seconds_option, store_argument
from ._pending import (
    live_of,
    pending_document,
    pending_text,
    stopping_document,
    stopping_texts,
)
from ._render import (
    Document,
    Pairs,
    owner_document,
    summary_document,
    to_json,
    to_lines,
    to_rich,
    word_of,
)
from ._select import read_status, reading
from ._show import left_text, per_status, total_pairs

TERMINAL_EVERY_S = 1.0
LINES_EVERY_S = 10.0


@attrs.frozen
class WatchedStatus:
    """One reading of the run, compared with the first one.

    Attributes:
        run: How it stands.
        summary: What its streams add up to.
        since_s: Seconds since the first reading.
        new: Batches confirmed since then.
        spent: What was spent since then, by name.
        rate: Batches per second since then; None before it is warm.
        live: What the owner is at; None: that cannot be seen.
    """

    run: RunStatus
    summary: Summary
    since_s: float
    new: int
    spent: dict[str, int | float]
    rate: float | None
    live: LiveView | None

    @property
    def eta_s(self) -> float | None:
        """Seconds until all but failed streams are done at that rate; None: idle or stopping."""
        if self.live is not None and self.live.stopping is not None:
            return None
        idle_s = time.time() - (self.run.last_activity() or 0.0)
        if idle_s > stuck_after_s(1 / self.rate if self.rate else None):
            return None
        parts = [self.run.parts[key] for key in self.run.keys]
        lefts = [part.left for part in parts if part.status is not Status.FAILED]
        ahead = None if None in lefts else sum(left or 0 for left in lefts)
        return eta_s(self.summary.left, ahead, self.rate)


@app.command("watch")
@store_argument
@any_run_argument
@seconds_option("--every", "How often to look; default: 1 on a terminal, 10 elsewhere.", least=0.1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on each line.")
def watch_command(store: str, run_id: str | None, every_s: float | None, as_json: bool) -> int:
    """Watch a run until its process releases it, or a job until all its items are done.

    Exits as the program should then: 0 complete, 3 complete but for what was skipped, 75 with
    work left.
    """

    async def main() -> int:
        async with reading(store) as opened:
            return await watch(opened, run_id, every_s=every_s, as_json=as_json, file=sys.stdout)

    return trio.run(main)


async def watch(
    store: Store, run_id: str | None, *, every_s: float | None, as_json: bool, file: TextIO
) -> int:
    """Show a run until its owner releases it, or a job until all its items are done.

    Returns:
        The exit code for the status of the run at that time.

    Cancellation: a cancellation point between two readings.
    """
    run = await read_status(store, run_id)
    first, began = run.summary(), trio.current_time()
    is_live = file.isatty() and not as_json
    pause_s = every_s or (TERMINAL_EVERY_S if is_live else LINES_EVERY_S)
    with _drawer(as_json=as_json, is_live=is_live, file=file) as draw:
        while True:
            draw(_compare(run, await live_of(run), first, trio.current_time() - began))
            if run.is_over if run.is_job else run.owner is None:
                return run.exit_code()
            await trio.sleep(pause_s)
            run = await read_status(store, run.run_id)


def _compare(
    run: RunStatus, live: LiveView | None, first: Summary, since_s: float
) -> WatchedStatus:
    summary = run.summary()
    new = max(0, summary.confirmed - first.confirmed)  # less if batches were re-queued
    spent = {
        name: value - first.spent.get(name, 0)
        for name, value in summary.spent.items()
        if value != first.spent.get(name, 0)
    }
    return WatchedStatus(run, summary, since_s, new, spent, rate_per_s(new, since_s), live)


@contextmanager
def _drawer(
    *, as_json: bool, is_live: bool, file: TextIO
) -> Generator[Callable[[WatchedStatus], None]]:
    if as_json:
        yield lambda seen: print(to_json(_document(seen), indent=None), file=file, flush=True)
    elif not is_live:
        yield lambda seen: print(_line(seen), file=file, flush=True)
    else:
        from rich.live import Live

        with Live(console=console_for(file), auto_refresh=False) as live:
            yield lambda seen: live.update(to_rich(Pairs(_pairs(seen))), refresh=True)


def _document(seen: WatchedStatus) -> Document:
    return {
        "run": seen.run.run_id,
        "status": word_of(seen.run.status_of(seen.summary)),
        "running": seen.run.owner is not None,
        "owner": owner_document(seen.run.owner),
        "phase": current_phase(seen.run.parts),
        "total": summary_document(seen.summary),
        "pending": pending_document(seen.live, time.time()),
        "stopping": stopping_document(seen.live),
        "watched": {
            "seconds": round(seen.since_s, 3),
            "confirmed": seen.new,
            "spent": seen.spent,
            "rate_per_s": seen.rate,
            "eta_s": seen.eta_s,
        },
        "exit_code": seen.run.exit_code(),
    }


def _watched(seen: WatchedStatus) -> str:
    text = f"{plural(seen.new, 'batch')} in {duration(seen.since_s)}"
    if seen.spent:
        text += f", spent {amounts(seen.spent)}"
    if seen.rate is not None:
        text += f", {number(round(seen.rate, 2))} batches/s"
        if seen.eta_s is not None and seen.summary.left:
            text += f", ETA {duration(seen.eta_s)}"
    return text


def _line(seen: WatchedStatus) -> str:
    summary = seen.summary
    texts = [
        f"{seen.run.run_id} {_status(seen)}",
        f"streams: {per_status(summary.streams)}",
        f"total: {plural(summary.confirmed, 'batch')}, {left_text(summary)} left, "
        f"{number(summary.skipped)} skipped, {number(summary.failing)} failing"
        + (f", {number(summary.deferred)} deferred" if summary.deferred else ""),
        *(f"stopping: {text}" for text in stopping_texts(seen.live, time.time())),
        *(f"pending: {text}" for text in _pending(seen)),
        f"watched: {_watched(seen)}",
    ]
    return to_lines(["; ".join(texts)])[0]


def _pairs(seen: WatchedStatus) -> list[tuple[str, str]]:
    return [
        ("run", f"{seen.run.run_id} {_status(seen)}"),
        ("streams", per_status(seen.summary.streams)),
        *total_pairs(seen.summary),
        *(("stopping", text) for text in stopping_texts(seen.live, time.time())),
        *(("pending", text) for text in _pending(seen)),
        ("watched", _watched(seen)),
    ]


def _pending(seen: WatchedStatus) -> list[str]:
    return [] if seen.live is None else [pending_text(seen.live, time.time())]


def _status(seen: WatchedStatus) -> str:
    run = seen.run
    phase = current_phase(run.parts)
    text = run.status_of(seen.summary).value + (f", phase {phase}" if phase is not None else "")
    if run.owner is None:
        return f"{text}, no {'foreman' if run.is_job else 'process'} has it"
    return f"{text}, process {run.owner.pid} on {run.owner.host}"
