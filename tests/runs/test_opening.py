"""A lease that is lost while a run opens ends it as one that is lost later: with exit code 75."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.commit.leased import LEASE_S, LeasedStore, hang, is_down
from trio_ckpt import (
    LeaseLostError,
    RunStoppedError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
    open_run,
)
from trio_ckpt.abc import RunView


class SlowStore(LeasedStore):
    """Another process takes the run over while it is read."""

    async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
        view = await super().load_run(run_id, generation)
        await trio.sleep(LEASE_S + 1)
        async with self.reopen().lock_run(run_id):
            return view


async def stopped(store: LeasedStore, output_dir: Path | None = None) -> RunStoppedError:
    with pytest.raises(RunStoppedError) as raised:
        async with open_run("r", store=store, output_dir=output_dir, resume_command="again"):
            pytest.fail("the run was opened")
    assert raised.value.exit_code == raised.value.code == 75
    return raised.value


@pytest.mark.parametrize("has_files", [False, True])
async def test_a_takeover_while_a_run_is_read_stops_it(
    has_files: bool, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    before = LeasedStore()
    with pytest.raises(ZeroDivisionError):
        async with open_run("r", store=before, output_dir=tmp_path):
            raise ZeroDivisionError
    store = SlowStore()
    store._memory = before._memory
    error = await stopped(store, tmp_path if has_files else None)
    assert isinstance(error.__cause__, LeaseLostError)
    assert "run 'r' was stopped (nothing more can be saved: " in str(error)
    assert "go on with: again" in str(error)
    assert caplog.text.count("go on with: again") == 1


async def test_a_first_save_that_hangs_stops_the_run(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    store.fails = hang
    error = await stopped(store)
    assert isinstance(error.__cause__, SaveOutcomeUnknownError)


async def test_other_errors_of_the_opening_leave_as_they_are(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    store.fails = is_down
    with pytest.raises(StoreError, match="the network is down") as raised:
        async with open_run("r", store=store):
            pytest.fail("the run was opened")
    assert type(raised.value) is StoreError


async def test_a_store_that_was_replaced_is_not_to_be_started_again() -> None:
    async def is_replaced(_group: Sequence[object]) -> None:
        raise StoreConflictError("it was replaced")

    store = LeasedStore(lease_s=None)
    store.fails = is_replaced
    with pytest.raises(StoreConflictError, match="it was replaced"):
        async with open_run("r", store=store):
            pytest.fail("the run was opened")
