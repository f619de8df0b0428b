"""A batch as a body holds it: what it takes when it is settled, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trio_ckpt
from tests.opening import begin
from trio_ckpt._commit.batch import staged_of
from trio_ckpt._commit.staged import Staged
from trio_ckpt._runs.stream import loop_cursor_of


async def test_nothing_is_staged_for_an_attempt_that_is_over(tmp_path: Any) -> None:
    async with (
        begin(output_dir=tmp_path) as run,
        run.open_stream("s") as stream,
    ):
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        batch.complete()
        await batch.confirm()
        with pytest.raises(RuntimeError, match="is over"):
            batch.spend(usd=1)
        with pytest.raises(RuntimeError, match="is over"):
            batch.append_json("x.jsonl", 1)
        with pytest.raises(RuntimeError, match="is over"):
            await batch.write_bytes("x", b"")


async def test_a_refused_complete_stages_nothing() -> None:
    async with (
        begin() as run,
        run.open_stream("s") as stream,
    ):
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        with pytest.raises(ValueError, match="records must be an int"):
            batch.complete(cursor=7, records=-1)
        assert batch.complete()
        await batch.confirm()
        assert stream.cursor is None


async def test_the_first_call_settles_a_batch() -> None:
    async with begin() as run, run.open_stream("s") as stream:
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        assert batch.complete(records=1)
        assert not batch.complete(records=2)
        assert not batch.fail("too late")
        assert not batch.skip("too late")
        await batch.confirm()
        assert stream.progress.records == 1


@pytest.mark.parametrize("records", [np.int64(3), np.uint8(3)])
async def test_a_count_may_be_a_number_of_another_kind(records: Any) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        assert batch.complete(records=records)
        assert type(staged_of(batch).records) is int


BAD: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a negative count": ({"records": -1}, ValueError),
    "a count beyond 64 bits": ({"records": 2**63}, ValueError),
    "a count that is a bool": ({"records": True}, TypeError),
    "a count that is a float": ({"records": 1.0}, TypeError),
    "a flag that is a text": ({"last": "no"}, TypeError),
    "one path for several": ({"outputs": "a.json"}, TypeError),
    "a cursor that is no JSON": ({"cursor": object()}, trio_ckpt.NotEncodableError),
    "a total that is not finite": ({"totals": {"n": float("nan")}}, trio_ckpt.NotEncodableError),
    "metadata that is no mapping": ({"metadata": [1]}, TypeError),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_value_leaves_the_batch_unsettled(bad: str) -> None:
    values, kind = BAD[bad]
    async with begin() as run, run.open_stream("s") as stream:
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        with pytest.raises(kind):
            batch.complete(**{"metadata": {"x": 1}, **values})
        staged, empty = staged_of(batch), Staged()
        for name in Staged.__struct_fields__:
            assert getattr(staged, name) == getattr(empty, name), name
        assert batch.complete()


async def test_what_is_given_is_copied_when_it_is_given(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        item, metadata, data = [1], {"x": [1]}, bytearray(b"one")
        batch = loop_cursor_of(stream).gate.hand_out(0, item, b"")
        batch.item.append(2)
        batch.complete(metadata=metadata)
        metadata["x"].append(2)
        await batch.confirm()
        assert item == [1]
        assert batch.token.result_nowait().metadata == {"x": [1]}
        other = loop_cursor_of(stream).gate.hand_out(1, None, b"")
        await other.write_bytes("a", data)
        data[:] = b"two"
        assert (tmp_path / "a").read_bytes() == b"one"
        other.skip("enough")
        await other.confirm()


async def test_each_waiter_has_a_result_of_its_own() -> None:
    async with begin() as run, run.open_stream("s") as stream:
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        batch.complete(records=2, metadata={"x": [1]})
        await batch.confirm()
        first, second = batch.token.result_nowait(), batch.token.result_nowait()
        first.metadata["x"].append(2)
        assert second.metadata == {"x": [1]}
        assert second.records == 2
        assert second.completed_at is not None
        saved_at = stream.progress.updated_at
        assert second.completed_at.timestamp() == pytest.approx(saved_at, abs=1e-5)
