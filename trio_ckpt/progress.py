"""A live display of a run's progress, for programs that people watch.

On a terminal it is a few lines that are redrawn in place (with rich, the extra ``cli``);
anywhere else, such as a file or the log of a service, it is a plain line now and then.  It draws
from its own trio task: there are no threads, and an idle run draws nothing.
What it shows are the run's `statistics()`; their rate and ETA are counted in
`trio_ckpt._runs.statistics`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import trio

from ._journal.record import Status
from ._journal.statistics import RunStatistics
from ._journal.summary import left_of, percent_of
from ._runs.run import Run
from ._util.arguments import function, instance, seconds
from ._util.exact_sum import Number
from ._util.exceptions import text_of
from ._util.extras import needs_extra
from ._util.log import at, get_logger
from ._util.screen import GAP_CELLS, Screen as Screen, console_for, grid_of
from ._util.text import (
    amounts,
    duration,
    message_of,
    number,
    plural,
    printable,
    stopping_text,
    stream_name,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

log = get_logger(__name__)

TERMINAL_EVERY_S = 0.5
LINES_EVERY_S = 10.0
IDLE_EVERY_S = 1.0  # a terminal shows time, even if nothing else changes
MAX_WAITING = 3  # waiting streams that are named
MAX_BAR_CELLS = 40


async def show_progress(
    run: Run, *, file: TextIO | None = None, every_s: float | None = None
) -> None:
    """Show the progress of a run, until cancelled.

    ``nursery.start_soon(show_progress, run)``, and cancel the nursery when the work is done.
    This session and the total of all sessions are always shown apart.  Rate and ETA are
    hidden until they mean something: see `RunStatistics.rate_per_s`.  A display that fails is
    dropped, and the work continues.

    Args:
        run: An open run.
        file: The stream to write to; default: standard error.
        every_s: The shortest time between two updates, in seconds; default: `TERMINAL_EVERY_S`
            on a terminal, `LINES_EVERY_S` elsewhere.

    Raises:
        TypeError, ValueError: `run` is not an open run, `file` not a file, or `every_s` not a
            time above zero.

    Cancellation: draws once more, so that the last update shows the final state.
    """
    instance("run", run, Run, "an open run")
    if every_s is not None:
        every_s = seconds("every_s", every_s, is_zero_allowed=False)
    out = sys.stderr if file is None else file
    if file is not None:  # there may be no standard error: it was closed before this began
        function("file.write", getattr(file, "write", None))
    try:
        await _show(run, out, every_s)
    except Exception as error:  # of rich, for example, or of the caller's file
        log.warning(
            "run %r is not displayed any more: %s",
            run.run_id,
            message_of(text_of(error)),
            extra=at(run.run_id),
        )


async def _show(run: Run, out: TextIO, every_s: float | None) -> None:
    screen = Screen(out)
    if _is_terminal(screen):
        is_standard = out in (sys.stdout, sys.stderr)
        with _live(run.run_id, screen, is_standard=is_standard) as draw:
            await _follow(run, draw, every_s or TERMINAL_EVERY_S, IDLE_EVERY_S)
    else:
        draw = _line_drawer(run.run_id, screen)
        await _follow(run, draw, every_s or LINES_EVERY_S, idle_s=None)


async def _follow(
    run: Run, draw: Callable[[RunStatistics], None], every_s: float, idle_s: float | None
) -> None:
    """Draw when something has changed, and after `idle_s` if nothing has."""
    registry = run.coordinator.registry
    try:
        while True:
            version = registry.version
            draw(run.statistics())
            await trio.sleep(every_s)
            if idle_s is None:
                await registry.wait_changed(version)
            else:
                with trio.move_on_after(idle_s):
                    await registry.wait_changed(version)
    finally:
        draw(run.statistics())


def _is_terminal(file: TextIO) -> bool:
    return file.isatty() and importlib.util.find_spec("rich") is not None


# ---------------------------------------------------------------------------------------
# Plain lines
# ---------------------------------------------------------------------------------------


def _line_drawer(run_id: str, file: TextIO) -> Callable[[RunStatistics], None]:
    last = ""

    def draw(statistics: RunStatistics) -> None:
        nonlocal last
        line = progress_line(run_id, statistics)
        if line != last:  # the last update may be shown already
            print(line, file=file, flush=True)
            last = line

    return draw


def progress_line(run_id: str, statistics: RunStatistics) -> str:
    """Return the progress of a run as one line."""
    texts = [
        f"session: {_session(statistics)}",
        f"total: {_total(statistics)}",
        *_pace(statistics),
        *(f"stopping: {text}" for text in _stopping(statistics)),
        *(f"waiting: {text}" for text in _waiting(statistics)),
    ]
    return f"{printable(run_id)} {_status(statistics)}; {'; '.join(texts)}"


def progress_pairs(run_id: str, statistics: RunStatistics) -> list[tuple[str, str]]:
    """Return the progress of a run as pairs of name and text."""
    streams = _per_status(statistics.streams)
    groups = _per_status(statistics.groups)
    more = f"; groups: {groups}" if sum(statistics.groups.values()) > 1 else ""
    session = f"{_session(statistics)}; {duration(statistics.session_s)}"
    total = f"{_total(statistics)}; {duration(statistics.runtime_s)}"
    pairs = [
        ("run", f"{printable(run_id)} {_status(statistics)}"),
        ("streams", f"{streams}{more}"),
        ("session", session),
        ("total", total),
    ]
    if pace := _pace(statistics):
        pairs.append(("pace", ", ".join(pace)))
    pairs += [("stopping", text) for text in _stopping(statistics)]
    pairs += [("waiting", text) for text in _waiting(statistics)]
    return pairs


def _status(statistics: RunStatistics) -> str:
    phase = statistics.current_phase
    word = statistics.status.value if statistics.stopping is None else "stopping"
    return word + (f", phase {printable(phase)}" if phase is not None else "")


def _per_status(counts: Mapping[Status, int]) -> str:
    texts = _counts(*((count, status.value) for status, count in counts.items()))
    return ", ".join(texts) or "none yet"


def _counts(*counts: tuple[int, str]) -> list[str]:
    """How many there are of each kind; kinds of which there is none are left out."""
    return [f"{number(count)} {what}" for count, what in counts if count]


def _sums(**sums: Mapping[str, Number]) -> list[str]:
    return [f"{what} {amounts(values)}" for what, values in sums.items() if values]


def _session(statistics: RunStatistics) -> str:
    texts = [
        plural(statistics.session_confirmed, "batch"),
        *_counts(
            (statistics.session_skipped, "skipped"),
            (statistics.session_retries, "tried again"),
            (statistics.in_flight, "in flight"),
        ),
        plural(statistics.session_records, "record"),
        *_sums(produced=statistics.session_totals, spent=statistics.session_spent),
    ]
    return ", ".join(texts)


def _total(statistics: RunStatistics) -> str:
    texts = [plural(statistics.confirmed, "batch")]
    if (left := left_of(statistics)) is not None:
        texts.append(f"{number(left)} left")
    texts += _counts(
        (statistics.skipped, "skipped"),
        (statistics.failing, "failing"),
        (statistics.deferred, "deferred"),
    )
    texts.append(plural(statistics.records, "record"))
    texts += _sums(produced=statistics.totals, spent=statistics.spent)
    if statistics.adopted:
        texts.append(f"without what {plural(statistics.adopted, 'adopted batch')} produced")
    return ", ".join(texts)


def _pace(statistics: RunStatistics) -> list[str]:
    """Return the rate of this session and the ETA; empty until the rate means something."""
    if statistics.rate_per_s is None:
        return []
    texts = [f"{number(round(statistics.rate_per_s, 2))} batches/s"]
    if statistics.eta_s is not None and statistics.left:
        texts.append(f"ETA {duration(statistics.eta_s)}")
    return texts


def _stopping(statistics: RunStatistics) -> Iterator[str]:
    if (stopping := statistics.stopping) is not None:
        yield stopping_text(stopping.open, stopping.batches, stopping.for_s)


def _waiting(statistics: RunStatistics) -> Iterator[str]:
    for waiting in statistics.waiting[:MAX_WAITING]:
        name, reason = stream_name(waiting.stream), message_of(waiting.reason)
        yield f"{name!r} for {duration(waiting.for_s)} more: {reason}"
    more = len(statistics.waiting) - MAX_WAITING
    if more > 0:
        yield f"{plural(more, 'stream')} more"


# ---------------------------------------------------------------------------------------
# A terminal
# ---------------------------------------------------------------------------------------


@contextmanager
def _live(
    run_id: str, file: TextIO, *, is_standard: bool
) -> Generator[Callable[[RunStatistics], None]]:
    """Lines in place; the program's own output is shown above them."""
    with needs_extra("cli", "a live display on a terminal"):
        from rich.live import Live

    live = Live(
        console=console_for(file),
        auto_refresh=False,  # rich's own refresh would need a thread
        redirect_stdout=is_standard,
        redirect_stderr=is_standard,
    )
    with live:
        yield lambda statistics: live.update(_to_rich(run_id, statistics), refresh=True)


def _to_rich(run_id: str, statistics: RunStatistics) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = grid_of(progress_pairs(run_id, statistics))
    percent = percent_of(statistics)
    if percent is None:
        return grid
    line = Table.grid(padding=(0, GAP_CELLS))
    bar = ProgressBar(total=100, completed=percent, width=MAX_BAR_CELLS)
    line.add_row(bar, Text(f"{percent:.1f} %"))
    return Group(grid, line)
