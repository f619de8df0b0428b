"""Why a run has stopped by itself: the same words in all six places."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
import trio

from tests.cli.tools import Terminal
from tests.opening import begin
from trio_ckpt import Limits, RunStoppedError, SessionView, read_sessions
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt.monitor._views import RunSnapshot, run_line, session_line
from trio_ckpt.stores import open_store

WHY = "limit batches: 2 of 2 batches are done"


async def work(store: Path) -> None:
    async with begin(store, limits=Limits(batches=2)) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(9)):
            batch.complete()


async def look(path: Path) -> tuple[SessionView, str, str]:
    """The last session, and how the page shows it, alone and in the list of sessions."""
    store = await open_store(path)
    try:
        status, sessions = await read_run_status(store, "r"), await read_sessions(store, "r")
    finally:
        await store.aclose()
    assert status is not None
    line = run_line(RunSnapshot(status, None, "stored", time.time()).glance)
    assert line.session is not None
    return sessions[-1], line.session.how, session_line(sessions[-1]).how


def test_the_reason_is_in_all_six_places(
    store: Path, run: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunStoppedError) as caught:
        trio.run(work, store)
    # The error, and the log.
    assert (caught.value.exit_code, caught.value.reason) == (75, WHY)
    assert str(caught.value).startswith(
        f"run 'r' was stopped by its {WHY} (every open batch is saved); go on with: "
    )
    assert str(caught.value) in caplog.text
    # The record of the session, and the page.
    session, of_run, of_session = trio.run(look, store)
    assert (session.how, session.reason) == ("was stopped", WHY)
    assert of_run == of_session == f"was stopped by its {WHY}"
    # The commands, for people and for programs.
    said = run("explain", store, "r")
    assert "stopped by itself at 20" in said.out.replace("\n", " ")
    assert f"by its {WHY}" in " ".join(said.out.split())
    document = json.loads(run("show", store, "r", "--json").out)
    assert (document["session"]["how"], document["session"]["reason"]) == ("was stopped", WHY)
    assert document["exit_code"] == 75
    assert f"was stopped by its {WHY}" in run("show", store, "r").out
    assert f"was stopped by its {WHY}" in run("ls", store).out
    [line] = json.loads(run("history", store, "r", "--json").out)["sessions"]
    assert (line["how"], line["reason"]) == ("was stopped", WHY)


def test_a_start_says_that_a_run_was_stopped_by_a_limit(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with pytest.raises(RunStoppedError):
            trio.run(work, store)
    assert f"session 1 was stopped by its {WHY}" in caplog.text
