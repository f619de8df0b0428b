"""Looking at saved states finds what is not as it was saved, and where."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from tests.maintenance.export_tools import save_records
from tests.opening import begin
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._maintenance.verify_states import StateCheck, check_states
from trio_ckpt.abc import Store, StoredRecord
from trio_ckpt.state import decode_frame, encode_frame
from trio_ckpt.stores import MemoryStore


async def train(store: Store, size: int) -> None:
    state = {"weights": np.zeros(size)}
    async with (
        begin(store) as run,
        run.open_stream("s", state=state) as stream,
    ):
        async for batch in stream.batches(range(3)):
            stream.state["weights"] += np.random.default_rng(batch.index).random(size)
            batch.complete()


async def check(store: Store) -> StateCheck:
    view = await store.load_run("r")
    assert view is not None
    return await check_states(store, view)


class Altering(MemoryStore):
    """Gives back blobs with a bit turned at a place."""

    at: int | None = None

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        data = bytearray(await super().read_blob(run_id, digest, offset, size))
        if self.at is not None and offset <= self.at < offset + len(data):
            data[self.at - offset] ^= 1
        return bytes(data)


@pytest.mark.parametrize("size", [1_000, 90_000, 1_500_000])
async def test_nothing_is_found_where_all_is_as_saved(size: int) -> None:
    store = MemoryStore()
    await train(store, size)
    found = await check(store)
    assert found.problems == ()
    assert found.states >= 3
    assert found.bytes > 0


async def test_every_byte_of_a_blob_counts() -> None:
    store = Altering()
    await train(store, 90_000)
    whole = await check(store)
    for store.at in (0, 1_000, 300_000):
        found = await check(store)
        assert found.problems
        assert found.states == whole.states
        assert {problem.key for problem in found.problems} == {("s",)}
        assert all("are damaged" in problem.what for problem in found.problems)


async def test_a_blob_that_is_gone_is_found_with_its_batch() -> None:
    class Losing(MemoryStore):
        is_gone = False

        async def read_blob(
            self, run_id: str, digest: str, offset: int = 0, size: int | None = None
        ) -> bytes:
            name = "0" * 64 if self.is_gone else digest
            return await super().read_blob(run_id, name, offset, size)

    store = Losing()
    await train(store, 90_000)
    store.is_gone = True
    problems = (await check(store)).problems
    assert problems
    assert problems[0].batch_index == 2
    assert "missing" in problems[0].what


async def test_small_arrays_are_looked_at_in_their_frames() -> None:
    store, other = MemoryStore(), MemoryStore()
    await train(store, 1_000)
    states: list[bytes] = []
    page = await store.history("r", '["s"]')
    for stored in page.records:
        states += state_of(store, stored)
    frame = decode_frame(states[-1])
    data = bytearray(frame.data)
    data[len(data) // 2] ^= 1
    fields = {name: getattr(frame, name) for name in frame.__struct_fields__}
    altered = type(frame)(**{**fields, "data": bytes(data)})
    records = [Record(kind=RecordKind.SAVE, at=1.0, state=encode_frame(altered))]
    await save_records(other, "r", ("s",), records)
    (problem,) = (await check(other)).problems
    assert (problem.sequence, problem.batch_index) == (1, None)
    assert "are damaged" in problem.what


def state_of(store: Store, stored: StoredRecord) -> list[bytes]:
    from trio_ckpt._journal.record import decode_record

    record = decode_record(store.seal("r", 0, ("s",)).open(stored.sequence, stored.payload))
    return [record.state] if record.state else []


async def test_a_frame_that_is_none_is_found() -> None:
    store = MemoryStore()
    await save_records(
        store, "r", ("s",), [Record(at=1.0, index=index, state=b"none") for index in range(2)]
    )
    found = await check(store)
    assert [problem.sequence for problem in found.problems] == [None, 2, 1]
    assert found.problems[1].batch_index == 1
    assert attrs.asdict(found)["states"] == 2
