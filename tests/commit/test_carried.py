"""Outputs that are carried over: still what was confirmed, and of one batch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import BatchFailedError, OutputClaimedError, OutputError
from trio_ckpt._commit.staged import AttemptState
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore


async def make(store: Store, folder: Path) -> None:
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "b"]):
            await batch.write_text(f"{batch.item}.txt", batch.item)
            batch.complete()


async def carry(store: Store, folder: Path, items: list[str], before: Any) -> None:
    async with (
        begin(store, output_dir=folder, again=True) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(items):
            if batch.index == 0:
                await before(batch)
            if batch.state is AttemptState.OPEN:
                batch.unchanged()


async def test_an_output_altered_since_the_start_is_not_carried_over(tmp_path: Path) -> None:
    async def alter(_batch: Any) -> None:
        (tmp_path / "a.txt").write_text("altered")

    store = MemoryStore()
    await make(store, tmp_path)
    with pytest.raises(BatchFailedError) as caught:
        await carry(store, tmp_path, ["a", "b"], alter)
    assert isinstance(caught.value.__cause__, OutputError)
    assert "unchanged() carries over what the last generation has written" in str(caught.value)


async def test_a_name_that_another_batch_has_taken_is_not_carried_over(tmp_path: Path) -> None:
    async def take(batch: Any) -> None:
        await batch.write_text("a.txt", "its name is taken")
        batch.complete()

    store = MemoryStore()
    await make(store, tmp_path)
    with pytest.raises(BatchFailedError) as caught:
        await carry(store, tmp_path, ["new", "a", "b"], take)
    assert isinstance(caught.value.__cause__, OutputClaimedError)
