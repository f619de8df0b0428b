"""The law of the exits: which exit an exception takes, and which error decides.

Each cell of the table `GATE` is tested in `test_gate.py`, by what a run then does.
"""

from __future__ import annotations

import pytest
import trio

from tests.opening import begin
from trio_ckpt import BatchFailedError, RunStoppedError, StreamFailedError
from trio_ckpt._commit.exits import GATE, Exit, GateAction, decisive, exit_of, is_ended_from_outside
from trio_ckpt._commit.staged import AttemptState
from trio_ckpt._runs.stream import loop_cursor_of

CANCEL, ERROR = Exit.CANCEL, Exit.ERROR
STOP = RunStoppedError("r", exit_code=75, resume_command="again")


class BodyError(Exception):
    """What a body raises."""


def test_the_table_has_a_cell_for_each_exit_from_each_state() -> None:
    assert {state: list(row) for state, row in GATE.items()} == {
        state: list(Exit) for state in AttemptState
    }
    assert {action for row in GATE.values() for action in row.values()} == set(GateAction)


def test_only_a_completed_attempt_is_saved_as_a_result() -> None:
    saves = (GateAction.SAVE, GateAction.SAVE_OR_REJECT)
    states = {state for state, row in GATE.items() for action in row.values() if action in saves}
    assert states == {AttemptState.COMPLETED}


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("", errors)


async def test_the_way_of_an_exception() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled) as caught:
            await trio.lowlevel.checkpoint()
        cancelled = caught.value
        assert exit_of(cancelled) is CANCEL
        assert exit_of(group(cancelled, group(cancelled))) is CANCEL
        assert exit_of(group(cancelled, group(BodyError(), cancelled))) is ERROR
    assert exit_of(BodyError()) is ERROR
    assert exit_of(group(BodyError())) is ERROR
    assert exit_of(KeyboardInterrupt()) is CANCEL


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), STOP])
def test_what_ends_a_program_is_not_the_error_of_a_batch(error: BaseException) -> None:
    assert exit_of(error) is CANCEL
    assert exit_of(group(error, BodyError())) is ERROR


@pytest.mark.parametrize(
    ("error", "is_outside"),
    [
        (STOP, True),
        (group(STOP, STOP), True),
        (group(STOP, BodyError()), False),
        (BodyError(), False),
        ("a reason", False),
    ],
)
async def test_a_stop_that_a_body_caught_fails_no_batch(
    error: BaseException | str, is_outside: bool
) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        batch = loop_cursor_of(stream).gate.hand_out(0, None, b"")
        assert not is_ended_from_outside(batch)
        batch.skip(error)
        assert is_ended_from_outside(batch) is is_outside
        await loop_cursor_of(stream).gate.pass_gate(batch, Exit.ERROR)


def test_the_failure_that_no_start_can_mend_decides() -> None:
    final = BatchFailedError("x", retryable=False)
    passing = StreamFailedError("x", retryable=True)
    other = BodyError()
    assert decisive([other, passing, final]) is final
    assert decisive([other, passing]) is passing
    assert decisive([other]) is other
