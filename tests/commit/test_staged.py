"""What is staged for a batch is its own, and is gone with its attempt."""

from __future__ import annotations

from pathlib import Path

from tests.opening import begin
from trio_ckpt import RetryRule, RetryTable
from trio_ckpt._commit.sink_writer import StagedPiece
from trio_ckpt._commit.staged import Staged


def test_no_two_batches_share_what_they_stage() -> None:
    """Its defaults are empty, and cost least where they are written once."""
    one, other = Staged(), Staged()
    one.lines["log"] = StagedPiece(bytearray(b"x"))
    one.outputs.clear()
    one.adopted.append("a")
    one.totals["pages"] = 1
    one.metadata["x"] = 1
    assert (other.lines, other.adopted, other.totals, other.metadata) == ({}, [], {}, {})
    assert Staged() == other


async def test_a_failed_attempt_leaves_nothing_staged(tmp_path: Path) -> None:
    retry = RetryTable((RetryRule((ConnectionError,), attempts=2, backoff_s=0.0),))
    async with begin(output_dir=tmp_path) as run, run.open_stream("s", retry=retry) as stream:
        async for batch in stream.batches(range(1)):
            if batch.attempt == 1:
                batch.append_bytes("log", b"of the first attempt")
                batch.fail(ConnectionError("refused"))
            else:
                batch.append_bytes("log", b"of the second")
                batch.complete()
    assert (tmp_path / "log").read_bytes() == b"of the second"
