"""`watch`: it follows a run in another process, and ends with it."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from trio_ckpt.cli._show import show_run
from trio_ckpt.cli._watch import watch
from trio_ckpt.stores import MemoryStore


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def collect(
    store: MemoryStore,
    *,
    pages: int = 60,
    stop_after: int | None = None,
    skip: int | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A run that takes a second for each page."""
    try:
        async with (
            trio_ckpt.open_run("run", store=store, handle_signals=False) as run,
            run.open_stream("pages") as stream,
        ):
            task_status.started()
            async for page in stream.batches(range(pages)):
                await trio.sleep(1)
                page.spend(cost_usd=0.5)
                if page.index == skip:
                    page.skip("empty")
                else:
                    page.complete(records=2)
                if page.index == stop_after:
                    run.request_stop()
    except trio_ckpt.RunStoppedError:
        pass


async def watched(
    *, as_json: bool = False, file: io.StringIO | None = None, every_s: float = 10.0, **how: Any
) -> tuple[int, list[str]]:
    """What watching a run says from beginning to end, and what it exits with."""
    store, out = MemoryStore(), io.StringIO() if file is None else file
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: collect(store, task_status=task_status, **how))
        await trio.sleep(0.5)
        code = await watch(store, "run", every_s=every_s, as_json=as_json, file=out)
    return code, out.getvalue().splitlines()


def after_owner(line: str) -> str:
    """A line without the process and its host."""
    status, _, rest = line.partition("; ")
    return f"{status.partition(', process')[0]}; {rest}"


async def test_it_prints_lines_and_hides_rate_and_eta_until_they_mean_much(
    autojump_clock: MockClock,
) -> None:
    code, lines = await watched()
    assert code == 0
    assert [after_owner(line) for line in lines] == [
        "run in progress; streams: none; total: 0 batches, unknown left, 0 skipped, 0 failing; "
        "watched: 0 batches in 0.0 s",
        "run in progress; streams: 1 in progress; total: 10 batches, 50 left, 0 skipped, "
        "0 failing; watched: 10 batches in 10 s, spent cost_usd 5",
        "run in progress; streams: 1 in progress; total: 20 batches, 40 left, 0 skipped, "
        "0 failing; watched: 20 batches in 20 s, spent cost_usd 10, 1 batches/s, ETA 40 s",
        "run in progress; streams: 1 in progress; total: 30 batches, 30 left, 0 skipped, "
        "0 failing; watched: 30 batches in 30 s, spent cost_usd 15, 1 batches/s, ETA 30 s",
        "run in progress; streams: 1 in progress; total: 40 batches, 20 left, 0 skipped, "
        "0 failing; watched: 40 batches in 40 s, spent cost_usd 20, 1 batches/s, ETA 20 s",
        "run in progress; streams: 1 in progress; total: 50 batches, 10 left, 0 skipped, "
        "0 failing; watched: 50 batches in 50 s, spent cost_usd 25, 1 batches/s, ETA 10 s",
        "run complete, no process has it; streams: 1 complete; total: 60 batches, 0 left, "
        "0 skipped, 0 failing; watched: 60 batches in 1 min 00 s, spent cost_usd 30, 1 batches/s",
    ]
    assert ", process " in lines[0]


@pytest.mark.parametrize(
    ("how", "code"), [({}, 0), ({"skip": 3}, 3), ({"stop_after": 4}, 75)], ids=str
)
async def test_it_exits_as_the_run_stands(
    autojump_clock: MockClock, how: dict[str, Any], code: int
) -> None:
    assert (await watched(pages=10, **how))[0] == code


async def test_with_json_each_line_is_a_document(autojump_clock: MockClock) -> None:
    _, lines = await watched(as_json=True, pages=30)
    documents = [json.loads(line) for line in lines]
    assert [document["total"]["batches"]["confirmed"] for document in documents] == [0, 10, 20, 30]
    assert [document["running"] for document in documents] == [True, True, True, False]
    assert set(documents[0]["owner"]) == {"host", "pid", "since"}
    assert documents[1]["watched"] == {
        "seconds": 10.0,
        "confirmed": 10,
        "spent": {"cost_usd": 5.0},
        "rate_per_s": None,
        "eta_s": None,
    }
    assert documents[2]["watched"]["rate_per_s"] == 1.0
    assert documents[-1]["exit_code"] == 0


async def test_on_a_terminal_it_draws_in_place(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    screen = FakeTerminal()
    code, _ = await watched(file=screen, pages=30)
    assert code == 0
    assert "\x1b[" in screen.getvalue()  # the cursor goes up to draw again
    last = screen.getvalue().rpartition("no process has it")[2]
    for text in ("total spent", "cost_usd 15", "watched", "30 batches in 30 s"):
        assert text in last


async def test_a_run_that_no_process_runs_is_shown_once(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    await collect(store, pages=3)
    out = io.StringIO()
    assert await watch(store, None, every_s=None, as_json=False, file=out) == 0
    assert out.getvalue() == (
        "run complete, no process has it; streams: 1 complete; total: 3 batches, 0 left, "
        "0 skipped, 0 failing; watched: 0 batches in 0.0 s\n"
    )


class WindowStore(MemoryStore):
    """Shows what its owners are at."""

    has_live = True
    payload = b""

    async def publish(self, run_id: str, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.payload = payload

    async def read_live(self, run_id: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.payload


async def drain(store: MemoryStore, *, task_status: trio.TaskStatus[None]) -> None:
    """A run that is asked to stop in the fourth of twenty seconds of its first batch."""
    with suppress(trio_ckpt.RunStoppedError):
        async with (
            trio_ckpt.open_run("run", store=store, handle_signals=False) as run,
            run.open_stream("pages") as stream,
        ):
            task_status.started()
            async for page in stream.batches(range(5)):
                await trio.sleep(4)
                run.request_stop()
                await trio.sleep(16)
                page.complete()


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_stop_is_shown_with_what_it_waits_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_000_000 + trio.current_time())
    store, out = WindowStore(), io.StringIO()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: drain(store, task_status=task_status))
        await trio.sleep(6.5)
        answer = await show_run(store, "run", stream=None, show_all=False)
        shown, document = answer.blocks()[0], answer.document()
        assert await watch(store, "run", every_s=6, as_json=as_json, file=out) == 75
    lines = out.getvalue().splitlines()
    if as_json:
        stops = [json.loads(line)["stopping"] for line in lines]
        assert stops[0] == {
            "open": 1,
            "batches": [{"stream": ["pages"], "batch_index": 0}],
            "until": "1970-01-12T13:47:14+00:00",
        }
        assert document["stopping"] == stops[0]
        assert stops[-1] is None
    else:
        texts = [line.partition("stopping: ")[2].partition(";")[0] for line in lines]
        assert texts[0] == "waits at most 28 s more for 1 batch (pages batch 0)"
        assert texts[-1] == ""
        assert shown.rows[2] == ("stopping", texts[0])
