"""`ctl` steers a run, and `history`, `show` and `explain` say so."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.cli.tools import Said, Terminal, make_damaged
from tests.opening import begin
from trio_ckpt import RunStoppedError


async def typed(run: Terminal, *arguments: object) -> Said:
    """What a command says while a run is open in this process."""
    return await trio.to_thread.run_sync(partial(run, *arguments))


async def begin_and_end(store: Path) -> None:
    async with begin(store) as run, run.open_stream("a", "b") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")
def test_a_running_run_is_steered(run: Terminal, store: Path) -> None:
    async def main() -> None:
        async with begin(store) as opened, opened.open_stream("a", "b") as stream:
            async for batch in stream.batches(range(3)):
                if batch.index == 1:
                    said = await typed(run, "ctl", store, "r", "pause", "--why", "lunch")
                    assert said.out.splitlines() == [
                        "run 'r': paused: nothing more is handed out; what is open goes on"
                    ]
                    said = await typed(run, "ctl", store, "r", "pause")
                    assert (said.code, said.out) == (7, "")
                    assert "it is paused already, since" in said.err
                    said = await typed(run, "ctl", store, "r", "status")
                    assert said.lines[1] == "status  run 'r' is running"
                    assert said.lines[2].endswith(f"process {PID}: lunch")
                    assert said.lines[3] == "a/b     1 done, 0 skipped, 2 left, 1 open"
                    shown = await typed(run, "show", store, "r", "--json")
                    assert shown.json["paused"]["why"] == "lunch"
                    said = await typed(run, "ctl", store, "r", "resume", "--json")
                    assert said.json == {
                        "store": f"sqlite:{store}",
                        "run": "r",
                        "act": "resume",
                        "text": "resumed",
                    }
                    assert (await typed(run, "ctl", store, "r", "stop")).code == 0
                batch.complete()

    with pytest.raises(RunStoppedError):
        trio.run(main)
    acts = run("history", store, "r", "--json").json["acts"]
    assert [act["do"] for act in acts] == ["stop", "resume", "pause"]
    assert {act["pid"] for act in acts} == {os.getpid()}
    assert acts[2]["why"] == "lunch"
    assert run("history", store, "r", "--json", "--limit", "1").json["more_acts"] == 2
    assert "lunch" in run("history", store, "r").out


PID = f"{os.getpid()} on {socket.gethostname()}"


def test_a_run_without_a_process_is_steered(run: Terminal, store: Path) -> None:
    trio.run(begin_and_end, store)
    said = run("ctl", store, "r", "pause", "--why", "cost")
    assert said.out == "run 'r': no process runs the run: the next start starts paused\n"
    assert "status  no process runs the run" in run("ctl", store, "r", "status").out
    assert run("ctl", store, "r", "status", "--json").json["status"]["paused"]["why"] == "cost"
    shown = run("show", store, "r").out
    assert f"process {PID}: cost" in next(line for line in shown.splitlines() if "paused" in line)
    explained = " ".join(run("explain", store, "r").out.split())
    assert f"until `trio-ckpt ctl sqlite:{store} r resume`." in explained
    assert run("ctl", store, "r", "resume").code == 0
    assert "paused" not in run("show", store, "r").out
    assert run("show", store, "r", "--json").json["paused"] is None
    said = run("ctl", store, "r", "stop")
    assert (said.code, said.err) == (
        7,
        "trio-ckpt: no process runs the run, and stop needs one\n",
    )


def test_batches_are_named_by_stream_and_number(run: Terminal, store: Path) -> None:
    trio.run(begin_and_end, store)
    said = run("ctl", store, "r", "requeue", "a/b", "0-1", "--why", "new model")
    assert said.out == (
        "run 'r': no process runs the run: batches 0-1 are re-queued, for the next start\n"
    )
    assert run("ctl", store, "r", "skip", "a/b", "1").code == 0
    said = run("history", store, "r")
    assert "requeue a/b 0-1" in said.out
    assert run("ctl", store, "r", "requeue", "a/b").code == 2
    assert run("ctl", store, "r", "requeue", "q", "1").code == 4
    said = run("ctl", store, "r", "requeue", "a/b", "x")
    assert (said.code, said.err) == (
        2,
        "trio-ckpt: BATCHES is written 17,203-210, not 'x'\n",
    )
    assert run("ctl", store, "r", "skip", "a/b", "99").code == 7
    acts = run("history", store, "r", "--json").json["acts"]
    assert [(act["do"], act["stream"], act["steps"]) for act in acts] == [
        ("skip", ["a", "b"], [1, 1]),
        ("requeue", ["a", "b"], [0, 2]),
    ]


def test_what_is_typed_wrong_is_refused(run: Terminal, store: Path) -> None:
    trio.run(begin_and_end, store)
    assert run("ctl", store, "q", "pause").code == 4
    assert run("ctl", store, "r", "remove").code == 2
    assert run("ctl", store, "r", "pause", "now").code == 2
    assert run("ctl", store, "r", "concurrency").code == 2
    said = run("ctl", store, "r", "concurrency", "0")
    assert said.err == "trio-ckpt: '0' is not a number from 1 on\n"
    assert run("ctl", store, "r", "limit", "cost_usd").code == 2
    assert run("ctl", store, "r", "limit", "cost_usd=nan").code == 2
    assert run("ctl", store, "r", "limit", "cost_usd=80").code == 7
    assert run("ctl", store, "r", "pause", "--why", "a" * 501).code == 2
    assert run("history", store, "r", "--json").json["acts"] == []


def test_a_run_that_cannot_be_read_is_not_steered(run: Terminal, store: Path) -> None:
    make_damaged(str(store), "r")
    assert run("ctl", store, "r", "pause").code == 6
