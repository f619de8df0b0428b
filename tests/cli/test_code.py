"""What older code did, in the commands: how many batches, and to do them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.tools import Terminal
from tests.opening import begin
from trio_ckpt import Batch, CodeChangedError, run_batches


async def correct(batch: Batch[Any]) -> None:
    batch.complete()


async def correct_better(batch: Batch[Any]) -> None:
    batch.complete(records=1)


async def work(store: Path, handler: Any, count: int, code: Any = "note") -> tuple[str, list[int]]:
    """Work on what is left; returns the digest of the code, and what was worked on."""
    begun = list[int]()
    async with begin(store, code=code) as run, run.open_stream("s") as stream:
        begun += stream.remaining(total=count)
        await run_batches(stream, range(count), handler)
        mark = stream.progress.code
    assert mark is not None
    return mark.digest, begun


def test_explain_counts_them_and_retry_re_queues_them(store: Path, run: Terminal) -> None:
    old, _ = trio.run(work, store, correct, 3)
    trio.run(work, store, correct_better, 5)
    said = " ".join(run("explain", store, "r").out.split())
    assert "The code of correct_better changed in session 2; 3 batches are of the old" in said
    assert f"(3 of {old} since session 1)" in said
    assert run("retry", store, "r", "--code", "0123", "--yes").code == 2  # there is none such
    assert run("retry", store, "r", "--code", old[:2], "--yes").code == 2  # too short
    said = run("retry", store, "r", "--code", old[:6], "--yes").out
    assert "3 batches of 1 stream re-queued" in said
    assert trio.run(work, store, correct_better, 5)[1] == [0, 1, 2]
    said = run("explain", store, "r").out
    assert "changed in session" not in said


def test_what_the_newest_code_did_can_be_re_queued(store: Path, run: Terminal) -> None:
    """As the error and the log advise: where nothing is left, no record says what replaces it."""
    old, _ = trio.run(work, store, correct, 3)
    assert trio.run(work, store, correct_better, 3) == (old, [])
    assert run("retry", store, "r", "--code", "old", "--yes").code == 2
    with pytest.raises(CodeChangedError, match=f"retry --code {old}"):
        trio.run(work, store, correct_better, 3, "refuse")
    said = run("retry", store, "r", "--code", old, "--yes").out
    assert "3 batches of 1 stream re-queued" in said
    assert trio.run(work, store, correct_better, 3, "refuse")[1] == [0, 1, 2]


def test_what_the_newest_code_did_is_not_what_an_older_did(store: Path, run: Terminal) -> None:
    trio.run(work, store, correct, 2)
    new, _ = trio.run(work, store, correct_better, 5)
    assert run("retry", store, "r", "--code", new, "--yes", "--json").json["batches"] == 3


def test_all_older_code_is_old(store: Path, run: Terminal) -> None:
    trio.run(work, store, correct, 2)
    trio.run(work, store, correct_better, 3)
    answer = run("retry", store, "r", "--code", "old", "--yes", "--json").json
    assert answer["batches"] == 2
