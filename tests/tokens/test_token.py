"""The token: its table, its waiters, and what it says when it fails."""

from __future__ import annotations

import gc
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_ckpt import (
    BatchCancelledError,
    BatchWithdrawnError,
    CheckpointCoordinator,
    CheckpointFailedError,
    CheckpointResult,
    CheckpointToken,
    TokenRegistry,
    TokenState,
    TrioCkptError,
)
from trio_ckpt._tokens.coordinator import stamp
from trio_ckpt._tokens.token import (
    CANCELLED,
    TRANSITIONS,
    WITHDRAWN,
    Failure,
    TokenEvent,
    failure_of,
    may,
    move,
)
from trio_ckpt._util.threads import Portal

P, DONE, CONFIRMED, FAILED, GONE = TokenState
COMPLETE, CONFIRM, FAIL, REJECT, RETRY, WITHDRAW = TokenEvent

TABLE = {
    (P, COMPLETE): DONE,
    (P, FAIL): FAILED,
    (P, REJECT): FAILED,
    (P, WITHDRAW): GONE,
    (DONE, CONFIRM): CONFIRMED,
    (DONE, REJECT): FAILED,
    (DONE, RETRY): P,
}
"""The law, written a second time: every other cell refuses."""

ROUTES: dict[TokenState, tuple[TokenEvent, ...]] = {
    P: (),
    DONE: (COMPLETE,),
    CONFIRMED: (COMPLETE, CONFIRM),
    FAILED: (FAIL,),
    GONE: (WITHDRAW,),
}
FINAL = (CONFIRMED, FAILED, GONE)


class Host:
    """A host that lets everything happen and writes down how its tokens ended."""

    def __init__(self) -> None:
        self.seen: list[TokenState] = []
        self.registry = TokenRegistry()

    def complete(self, token: CheckpointToken[Any], result: Any) -> bool:
        raise NotImplementedError

    def fail(self, token: CheckpointToken[Any], error: BaseException | str) -> bool:
        raise NotImplementedError

    def check_wait(self, token: CheckpointToken[Any]) -> None:
        pass

    def ended(self, token: CheckpointToken[Any]) -> None:
        self.seen.append(token.state)


def outcome_of(event: TokenEvent) -> object:
    return "the result" if event is CONFIRM else Failure("it broke")


def token_in(state: TokenState, host: Host) -> CheckpointToken[Any]:
    token: CheckpointToken[Any] = CheckpointToken("run", ("a", "b"), 3, host, Portal.here())
    for event in ROUTES[state]:
        move(token, event, outcome_of(event))
    assert token.state is state
    host.seen.clear()
    return token


def dispose(token: CheckpointToken[Any]) -> None:
    """Settle what a test leaves pending: it would warn."""
    if token.is_pending:
        move(token, REJECT, CANCELLED)


@pytest.fixture
def coordinator() -> CheckpointCoordinator:
    return CheckpointCoordinator()


# -- the table ----------------------------------------------------------------------------


def test_the_table_is_the_one_of_the_design() -> None:
    cells = {(at, event): to for at, row in TRANSITIONS.items() for event, to in row.items()}
    assert cells == TABLE
    assert set(TRANSITIONS) == set(TokenState)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(TokenState, TokenEvent)), ids=lambda x: x.value
)
async def test_every_cell(state: TokenState, event: TokenEvent) -> None:
    """A legal event moves the token and is published; another raises and changes nothing.

    The host is told of the last one alone.
    """
    host = Host()
    token = token_in(state, host)
    target = TABLE.get((state, event))
    before, version = token._outcome, host.registry.version
    assert may(token, event) is (target is not None)
    if target is None:
        with pytest.raises(RuntimeError, match=rf"{state.value}> cannot {event.value}"):
            move(token, event, "what must not be kept")
        assert (token.state, token._outcome, host.seen) == (state, before, [])
        assert host.registry.version == version
    else:
        move(token, event, outcome_of(event))
        assert (token.state, host.seen) == (target, [target] if target in FINAL else [])
        assert host.registry.version == version + 1
    assert token.is_pending is (token.state not in FINAL)
    dispose(token)


@pytest.mark.parametrize("state", TokenState, ids=lambda x: x.value)
async def test_waiters_wake_at_the_final_states_and_no_other(state: TokenState) -> None:
    host = Host()
    token = token_in(P, host)
    woken: list[str] = []

    async def wait() -> None:
        try:
            woken.append(await token.wait())
        except CheckpointFailedError as error:
            woken.append(error.reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for event in ROUTES[state]:
            move(token, event, outcome_of(event))
        await wait_all_tasks_blocked()
        expected = {CONFIRMED: ["the result"], FAILED: ["it broke"], GONE: ["it broke"]}
        assert woken == expected.get(state, [])
        dispose(token)


async def test_a_retry_keeps_the_waiters_of_the_first_attempt() -> None:
    host = Host()
    token = token_in(P, host)
    got: list[str] = []

    async def wait() -> None:
        got.append(await token.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for event in (COMPLETE, RETRY, COMPLETE):
            move(token, event)
        await wait_all_tasks_blocked()
        assert got == []
        move(token, CONFIRM, "the second")
    assert got == ["the second"]


# -- settling -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["complete", "fail"])
async def test_settling_twice_the_first_wins(
    coordinator: CheckpointCoordinator, first: str
) -> None:
    token = coordinator.create_checkpoint("run", 0)
    settle = {"complete": lambda: token.complete(1), "fail": lambda: token.fail("no")}
    assert settle[first]() is True
    state = token.state
    assert [token.complete(2), token.fail("other")] == [False, False]
    assert token.state is state
    if first == "complete":
        assert token.result_nowait() == 1
    else:
        with pytest.raises(CheckpointFailedError) as caught:
            token.result_nowait()
        assert caught.value.reason == "no"


@pytest.mark.parametrize("result", [None, 0, (), "text", {"any": "value"}], ids=repr)
async def test_any_value_is_a_result(coordinator: CheckpointCoordinator, result: object) -> None:
    token = coordinator.create_checkpoint("run", 0)
    assert token.complete(result)
    assert token.result_nowait() is result
    assert await token.wait() is result


async def test_settling_stamps_completed_at_where_it_is_left_out() -> None:
    before = datetime.now(UTC)
    stamped = stamp(CheckpointResult(batch_hash="abc"))
    assert before <= stamped.completed_at <= datetime.now(UTC)
    assert stamped.batch_hash == "abc"
    given = CheckpointResult(completed_at=before)
    assert stamp(given) is given
    assert stamp("text") == "text"


async def test_settling_from_a_worker_thread(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint("run", 0)

    def work() -> bool:
        return trio.from_thread.run_sync(token.complete, "from a thread")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(token.wait)
        assert await trio.to_thread.run_sync(work) is True
    assert token.result_nowait() == "from a thread"


# -- errors -------------------------------------------------------------------------------


async def test_a_failure_names_run_stream_batch_reason_and_cause(
    coordinator: CheckpointCoordinator,
) -> None:
    cause = OSError("disk full")
    token = coordinator.create_checkpoint("run", 7, stream=("org/repo", "pulls"))
    token.fail(cause)
    with pytest.raises(CheckpointFailedError) as caught:
        await token.wait()
    error = caught.value
    assert type(error) is CheckpointFailedError
    assert (error.run_id, error.stream, error.batch_index) == ("run", ("org/repo", "pulls"), 7)
    assert error.reason == "disk full"
    assert error.__cause__ is cause
    for word in ("batch 7", "'run'", "org/repo/pulls", "disk full"):
        assert word in str(error)
    assert isinstance(error, TrioCkptError)


async def test_a_text_has_no_cause(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint("run", 0)
    token.fail("no more pages")
    with pytest.raises(CheckpointFailedError) as caught:
        await token.wait()
    assert caught.value.reason == "no more pages"
    assert caught.value.__cause__ is None


async def test_an_exception_without_text_gives_its_name(
    coordinator: CheckpointCoordinator,
) -> None:
    token = coordinator.create_checkpoint("run", 0)
    token.fail(ZeroDivisionError())
    with pytest.raises(CheckpointFailedError) as caught:
        token.result_nowait()
    assert caught.value.reason == "ZeroDivisionError"


async def test_every_waiter_has_an_exception_of_its_own(
    coordinator: CheckpointCoordinator,
) -> None:
    token = coordinator.create_checkpoint("run", 0)
    token.fail("no")
    errors: list[CheckpointFailedError] = []
    for _ in range(2):
        with pytest.raises(CheckpointFailedError) as caught:
            await token.wait()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


@pytest.mark.parametrize(
    ("failure", "error"), [(CANCELLED, BatchCancelledError), (WITHDRAWN, BatchWithdrawnError)]
)
async def test_cancelled_and_withdrawn_have_errors_of_their_own(
    failure: Failure, error: type[CheckpointFailedError]
) -> None:
    token = token_in(P, Host())
    move(token, WITHDRAW if failure is WITHDRAWN else REJECT, failure)
    with pytest.raises(error) as caught:
        await token.wait()
    assert (caught.value.run_id, caught.value.batch_index) == ("run", 3)


async def cancelled() -> trio.Cancelled:
    """An exception of trio's own, which cannot be made by hand."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            kept = error
            raise
    return kept


async def test_cancellation_never_reaches_a_waiter_as_such() -> None:
    """`token.fail(error)` in an ``except BaseException`` may well be given trio.Cancelled."""
    alone = await cancelled()
    group = BaseExceptionGroup("children", [alone, BaseExceptionGroup("deeper", [alone])])
    assert failure_of(alone) is CANCELLED
    assert failure_of(group) is CANCELLED
    mixed = BaseExceptionGroup("children", [alone, OSError("disk full")])
    assert failure_of(mixed) == Failure("children: disk full", mixed)


# -- waiting ------------------------------------------------------------------------------


async def test_result_nowait_before_it_is_settled(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint("run", 0)
    with pytest.raises(trio.WouldBlock):
        token.result_nowait()
    token.complete()


async def test_completed_is_not_confirmed_yet() -> None:
    token = token_in(DONE, Host())
    with pytest.raises(trio.WouldBlock):
        token.result_nowait()
    assert token.is_pending
    dispose(token)


async def test_wait_is_a_cancellation_and_schedule_point_also_when_settled(
    coordinator: CheckpointCoordinator,
) -> None:
    done = coordinator.create_checkpoint("run", 0)
    done.complete()
    failed = coordinator.create_checkpoint("run", 1)
    failed.fail("no")
    with assert_checkpoints():
        await done.wait()
    with assert_checkpoints(), pytest.raises(CheckpointFailedError):
        await failed.wait()
    with trio.CancelScope() as scope:
        scope.cancel()
        await done.wait()
    assert scope.cancelled_caught


async def test_wait_that_sleeps_is_a_cancellation_and_schedule_point(
    coordinator: CheckpointCoordinator,
) -> None:
    token = coordinator.create_checkpoint("run", 0)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with assert_checkpoints():
                await token.wait()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        token.complete()


async def test_the_event_is_made_when_a_task_waits(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint("run", 0)
    token.complete()
    await token.wait()
    assert token._event is None
    other = coordinator.create_checkpoint("run", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.wait)
        await wait_all_tasks_blocked()
        assert other._event is not None
        other.complete()


async def test_a_cancelled_waiter_harms_no_other(
    coordinator: CheckpointCoordinator, autojump_clock: MockClock
) -> None:
    token = coordinator.create_checkpoint("run", 0)
    got: list[str] = []

    async def wait() -> None:
        got.append(await token.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await token.wait()
        assert scope.cancelled_caught
        assert token.state is P
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert got == []
        token.complete("done")
    assert got == ["done", "done"]


# -- what it is --------------------------------------------------------------------------


async def test_age_is_of_trios_clock_and_created_at_of_the_wall(
    coordinator: CheckpointCoordinator, autojump_clock: MockClock
) -> None:
    before = datetime.now(UTC)
    token = coordinator.create_checkpoint("run", 0)
    after = datetime.now(UTC)
    assert token.age_s == 0
    await trio.sleep(90)
    assert token.age_s == 90
    assert token.created_at.utcoffset() == timedelta(0)
    assert before <= token.created_at <= after
    token.complete()


async def test_its_repr_says_where_it_stands(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint("run", 4, stream=("a", "b"))
    assert repr(token) == "<CheckpointToken of batch 4 of run 'run', stream 'a/b': pending>"
    token.complete()
    assert repr(token).endswith(": confirmed>")


async def test_a_token_that_is_never_settled_warns_when_collected() -> None:
    CheckpointCoordinator().create_checkpoint("night", 5, stream=("org/repo", "pulls"))
    with pytest.warns(ResourceWarning) as warned:
        gc.collect()
    (warning,) = warned
    for word in ("batch 5", "'night'", "org/repo/pulls", "complete()", "fail()"):
        assert word in str(warning.message)


@pytest.mark.parametrize("state", FINAL, ids=lambda x: x.value)
async def test_a_settled_token_goes_without_a_word(state: TokenState) -> None:
    token = token_in(state, Host())
    del token
    gc.collect()  # a warning would be an error here


def test_outside_of_trio_there_is_no_token(coordinator: CheckpointCoordinator) -> None:
    """Also not half a one, whose end would be an error of its own."""
    with pytest.raises(RuntimeError, match="outside of trio"):
        coordinator.create_checkpoint("run", 0)
    gc.collect()
    assert coordinator.get_pending_checkpoints() == ()
