"""The live display: what it says, how often, and that it never holds the run up."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_ckpt
from trio_ckpt._journal.statistics import RunStatistics, Stopping, Waiting
from trio_ckpt.progress import progress_line, progress_pairs, show_progress

STATISTICS = RunStatistics(
    status=trio_ckpt.Status.IN_PROGRESS,
    current_phase=None,
    streams={trio_ckpt.Status.IN_PROGRESS: 2, trio_ckpt.Status.COMPLETE: 1_000},
    groups={trio_ckpt.Status.IN_PROGRESS: 1},
    confirmed=84_200,
    skipped=0,
    failing=0,
    left=1_200,
    in_flight=0,
    records=842_000,
    totals={},
    spent={},
    saved={},
    adopted=0,
    session_confirmed=45,
    session_skipped=0,
    session_retries=0,
    session_records=450,
    session_totals={},
    session_spent={},
    runtime_s=7_500.0,
    session_s=200.0,
    rate_per_s=None,
    eta_s=None,
    reserved={},
    waiting=(),
)


def with_(**fields: Any) -> RunStatistics:
    return msgspec.structs.replace(STATISTICS, **fields)


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# -- the words -------------------------------------------------------------------------------------


def test_a_stop_takes_the_place_of_status_and_eta() -> None:
    stopping = Stopping(1, ((("org/repo1", "pulls"), 5),), 12.0)
    statistics = with_(stopping=stopping, rate_per_s=2.0)
    text = "waits at most 12 s more for 1 batch (org/repo1/pulls batch 5)"
    assert progress_line("run", statistics).startswith("run stopping; session: ")
    assert progress_line("run", statistics).endswith(f"; 2 batches/s; stopping: {text}")
    pairs = progress_pairs("run", statistics)
    assert pairs[0] == ("run", "run stopping")
    assert pairs[-1] == ("stopping", text)


def test_session_and_total_are_always_apart_and_labelled() -> None:
    assert progress_line("gh-2025", STATISTICS) == (
        "gh-2025 in progress; session: 45 batches, 450 records; "
        "total: 84,200 batches, 1,200 left, 842,000 records"
    )
    assert progress_pairs("gh-2025", STATISTICS) == [
        ("run", "gh-2025 in progress"),
        ("streams", "2 in progress, 1,000 complete"),
        ("session", "45 batches, 450 records; 3 min 20 s"),
        ("total", "84,200 batches, 1,200 left, 842,000 records; 2 h 05 min"),
    ]


def test_everything_that_can_be_said_is_said() -> None:
    statistics = with_(
        current_phase="collection",
        groups={trio_ckpt.Status.COMPLETE: 2},
        skipped=3,
        failing=2,
        in_flight=4,
        totals={"pages": 9},
        spent={"cost_usd": 12.5},
        adopted=1,
        session_skipped=1,
        session_retries=6,
        session_totals={"pages": 2},
        session_spent={"cost_usd": 0.25},
        rate_per_s=12.25,
        eta_s=97.2,
        waiting=(Waiting(("org/repo1", "pulls"), "Retry-After of RateLimitError", 30.0),),
    )
    assert progress_line("gh-2025", statistics) == (
        "gh-2025 in progress, phase collection; session: 45 batches, 1 skipped, 6 tried again, "
        "4 in flight, 450 records, produced pages 2, spent cost_usd 0.25; total: 84,200 batches, "
        "1,200 left, 3 skipped, 2 failing, 842,000 records, produced pages 9, spent cost_usd 12.5, "
        "without what 1 adopted batch produced; 12.25 batches/s; ETA 1 min 37 s; waiting: "
        "'org/repo1/pulls' for 30 s more: Retry-After of RateLimitError"
    )
    assert progress_pairs("gh-2025", statistics)[1] == (
        "streams",
        "2 in progress, 1,000 complete; groups: 2 complete",
    )
    assert progress_pairs("gh-2025", statistics)[-2:] == [
        ("pace", "12.25 batches/s, ETA 1 min 37 s"),
        ("waiting", "'org/repo1/pulls' for 30 s more: Retry-After of RateLimitError"),
    ]


def test_rate_and_eta_are_hidden_until_they_mean_something() -> None:
    assert "ETA" not in progress_line("r", STATISTICS)
    assert "batches/s" not in progress_line("r", STATISTICS)
    unknown = with_(rate_per_s=2.0, left=None)
    assert progress_line("r", unknown).endswith("; 2 batches/s")
    assert "left" not in progress_line("r", unknown)
    done = with_(rate_per_s=2.0, eta_s=0.0, left=0)
    assert "ETA" not in progress_line("r", done)


def test_of_many_streams_that_wait_some_are_named() -> None:
    waiting = tuple(Waiting((f"repo{n}",), "429", 5.0) for n in range(10))
    texts = [
        text for name, text in progress_pairs("r", with_(waiting=waiting)) if name == "waiting"
    ]
    assert texts == [
        "'repo0' for 5.0 s more: 429",
        "'repo1' for 5.0 s more: 429",
        "'repo2' for 5.0 s more: 429",
        "7 streams more",
    ]


def test_text_of_others_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2J\n\u202e"
    statistics = with_(
        current_phase=evil, session_spent={evil: 1}, waiting=(Waiting((evil,), evil, 1.0),)
    )
    assert progress_line(evil, statistics).isprintable()
    assert all(text.isprintable() for _, text in progress_pairs(evil, statistics))


# -- the display -----------------------------------------------------------------------------------


@asynccontextmanager
async def display(
    file: io.StringIO | None, *, every_s: float | None = None
) -> AsyncGenerator[trio_ckpt.Run]:
    """A run with its display, which has drawn once."""
    async with (
        trio_ckpt.open_run("run", store="memory:", handle_signals=False) as run,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: show_progress(run, file=file, every_s=every_s))
        await wait_all_tasks_blocked()
        yield run
        nursery.cancel_scope.cancel()


async def collect(run: trio_ckpt.Run, *, pages: int, page_s: float = 1.0) -> None:
    """Some work."""
    async with run.open_stream("pages") as stream:
        async for page in stream.batches(range(pages)):
            await trio.sleep(page_s)
            page.complete(records=2)


async def displayed(
    file: io.StringIO, *, pages: int, page_s: float = 1.0, every_s: float | None = None
) -> None:
    """A run with its display, to the end."""
    async with display(file, every_s=every_s) as run:
        await collect(run, pages=pages, page_s=page_s)


async def test_elsewhere_it_says_a_line_now_and_then_and_the_last_word(
    autojump_clock: MockClock,
) -> None:
    file = io.StringIO()
    await displayed(file, pages=45, page_s=0.9)  # not when a line is due
    lines = file.getvalue().splitlines()
    assert lines[0] == "run pending; session: 0 batches, 0 records; total: 0 batches, 0 records"
    assert lines[-1] == (
        "run complete; session: 45 batches, 90 records; total: 45 batches, 0 left, 90 records; "
        "1.11 batches/s"
    )
    assert len(lines) == 2 + 4  # every ten seconds
    assert ["ETA" in line for line in lines] == [False, False, True, True, True, False]


async def test_where_nothing_happens_it_says_nothing(autojump_clock: MockClock) -> None:
    file = io.StringIO()
    await displayed(file, pages=1, page_s=3_600.0)
    assert len(file.getvalue().splitlines()) <= 3


async def test_how_often_can_be_said(autojump_clock: MockClock) -> None:
    file = io.StringIO()
    await displayed(file, pages=45, every_s=1.0)
    assert len(file.getvalue().splitlines()) > 40
    async with display(file) as run:
        with pytest.raises(ValueError, match="every_s must be a number of seconds > 0, not 0"):
            await show_progress(run, file=file, every_s=0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    return FakeTerminal()


def frames(screen: FakeTerminal) -> list[str]:
    """What was drawn, one text for each time; a frame begins by going up over the last."""
    text = re.sub(r"\x1b\[([01]m|\?25[hl])", "", screen.getvalue())
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return [frame for frame in re.split(r"(?:\x1b\[2K|\x1b\[1A|\r)+", text) if frame.strip()]


async def test_a_terminal_is_drawn_in_place_without_threads(
    autojump_clock: MockClock, terminal: FakeTerminal
) -> None:
    before = set(threading.enumerate())
    async with display(terminal) as run:
        await collect(run, pages=30)
        assert set(threading.enumerate()) <= before
    assert "\x1b[1A" in terminal.getvalue()  # up, over the last frame
    last = frames(terminal)[-1]
    assert re.search(r"run +run complete\n", last)
    assert re.search(r"session +30 batches, 60 records; 30 s\n", last)
    assert re.search(r"total +30 batches, 0 left, 60 records; 30 s\n", last)
    assert "100.0 %" in last


async def test_the_clock_of_a_terminal_goes_on_while_nothing_happens(
    autojump_clock: MockClock, terminal: FakeTerminal
) -> None:
    await displayed(terminal, pages=1, page_s=10.0)
    texts = re.findall(r"session +0 batches[^;]*; (\S+ s)", "".join(frames(terminal)))
    assert len(set(texts)) >= 5


@pytest.mark.parametrize("columns", [30, 60, 200])
async def test_it_fits_the_terminal(
    autojump_clock: MockClock,
    terminal: FakeTerminal,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    await displayed(terminal, pages=30)
    for frame in frames(terminal):
        assert all(len(line) <= columns for line in frame.splitlines())
    words = " ".join(frames(terminal)[-1].split())
    assert "30 batches" in words


async def test_without_rich_a_terminal_gets_lines(
    autojump_clock: MockClock, terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    await displayed(terminal, pages=3)
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().startswith("run pending; session: ")


async def test_the_default_is_standard_error(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with display(None):
        pass
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "run pending; session: 0 batches, 0 records; total: 0 batches, 0 records\n",
    )
