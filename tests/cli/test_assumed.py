"""What open or killed batches have on record as a cost, in the words of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from tests.cli.tools import Terminal
from tests.opening import begin


async def work(store: Path) -> None:
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            await batch.note("job", "j-1", usd=0.5)
            await batch.reserve(usd=0.25)
            if batch.index == 0:
                batch.spend(usd=0.125)
            batch.skip("no") if batch.index == 2 else batch.complete()


def test_what_is_assumed_and_noted_is_shown_apart(store: Path, run: Terminal) -> None:
    trio.run(work, store)
    summary = json.loads(run("show", store, "r", "--json").out)["total"]
    assert summary["spent"] == {"usd": 1.125}  # of two batches: their notes, and what was settled
    assert summary["assumed"] == {"usd": 0.5}
    assert summary["noted"] == {"usd": 0.5}
    text = " ".join(run("show", store, "r").out.split())
    assert "assumed spent usd 0.5 (reserved and not settled; beside the total)" in text
    assert "noted as spent usd 0.5 (of batches that are not confirmed; beside the total)" in text
    explained = " ".join(run("explain", store, "r").out.split())
    assert "Reserved and not settled: usd 0.5. It counts as spent" in explained
    history = json.loads(run("history", store, "r", "--stream", "s", "--json").out)["checkpoints"]
    intents = [one for one in history if one["kind"] == "intent"]
    assert intents[-1]["metadata"] == {"job": "j-1"}
    assert intents[-1]["reserved"] == {"usd": 0.5}
    lines = run("history", store, "r", "--stream", "s").out
    assert "noted in a batch" in lines
    assert "usd 0.25 reserved" in lines
