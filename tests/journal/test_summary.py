"""Sums over streams: statuses, sums and order, derived for each call."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import msgspec
import pytest

from tests.opening import begin
from trio_ckpt import Progress, Run, Status, UnknownStreamError
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.progress import FailedAttempt
from trio_ckpt._journal.record import ErrorInfo, Record, RecordKind
from trio_ckpt._journal.summary import (
    current_phase,
    failing,
    group_status,
    groups_of,
    in_order,
    percent_of,
    phases_of,
    status_of,
    summarize,
)
from trio_ckpt._util.exact_sum import add_amounts
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt._util.plain import PHASE
from trio_ckpt.stores import MemoryStore

P, I, C, F, X = (  # noqa: E741  # a table is read by its shape
    Status.PENDING,
    Status.IN_PROGRESS,
    Status.COMPLETE,
    Status.FAILED,
    Status.INTERRUPTED,
)


def progress(status: Status = X, **changes: Any) -> Progress:
    """The progress of a stream that has begun."""
    return Progress(sequence=1, status=status, **changes)


def amounts(**values: float) -> Any:
    sums: Any = {}
    add_amounts(sums, values)
    return sums


# ---------------------------------------------------------------------------------------
# Status
# ---------------------------------------------------------------------------------------


def expected_status(found: set[Status]) -> Status:
    """The rule as the requirements have it."""
    for status in (I, X, F):
        if status in found:
            return status
    if found <= {P}:
        return P
    return C if found == {C} else I


EVERY_SET = [set(some) for size in range(6) for some in combinations(Status, size)]


@pytest.mark.parametrize("found", EVERY_SET, ids=lambda found: ",".join(s.name for s in found))
def test_the_status_of_a_group_is_the_first_that_holds(found: set[Status]) -> None:
    assert group_status(found) is expected_status(found)


def test_every_combination_of_three_streams_is_that_of_their_set() -> None:
    for statuses in product(Status, repeat=3):
        parts = {(str(n),): progress(status) for n, status in enumerate(statuses)}
        summary = summarize((), parts)
        assert summary.status is expected_status(set(statuses))
        assert summary.streams == {status: statuses.count(status) for status in Status}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], P),
        ([P, P], P),
        ([C, C], C),
        ([C, P], I),
        ([C, P, F], F),
        ([F, X], X),
        ([I, X, F, P, C], I),
    ],
)
def test_some_statuses_one_by_one(found: Iterable[Status], status: Status) -> None:
    assert group_status(found) is status


@pytest.mark.parametrize(
    ("status", "is_open", "shown"),
    [(X, True, I), (P, True, I), (C, True, C), (F, True, I), (X, False, X), (P, False, P)],
)
def test_a_stream_that_a_process_has_open_is_in_progress(
    status: Status, is_open: bool, shown: Status
) -> None:
    assert status_of(progress(status), is_open=is_open) is shown
    open_streams = [("s",)] if is_open else []
    assert summarize((), {("s",): progress(status)}, open_streams=open_streams).status is shown


# ---------------------------------------------------------------------------------------
# Sums
# ---------------------------------------------------------------------------------------


def test_sums_are_exact_and_times_are_the_outermost() -> None:
    error = ErrorInfo("ValueError", "late")
    one = progress(
        C,
        confirmed=IndexSet([0, 1, 2]),
        skipped=IndexSet([3]),
        records=5,
        totals=amounts(words=0.1, pages=1),
        spent=amounts(cost=1e16),
        spent_confirmed=amounts(cost=1.0),
        adopted=IndexSet([2]),
        last_index=3,
        started_at=20.0,
        updated_at=30.0,
        completed_at=30.0,
    )
    other = progress(
        F,
        confirmed=IndexSet([1]),
        records=2,
        totals=amounts(words=0.2),
        spent=amounts(cost=1.0),
        spent_confirmed=amounts(cost=0.5),
        failures={2: FailedAttempt(3, error)},
        expected=4,
        started_at=10.0,
        updated_at=40.0,
        failed_at=40.0,
        error=error,
    )
    earlier = progress(F, expected=1, failed_at=35.0, error=ErrorInfo("ValueError", "early"))
    found = summarize(("g",), {("g", "a"): one, ("g", "b"): other, ("g", "c"): earlier})
    assert (found.key, found.status) == (("g",), F)
    assert (found.confirmed, found.skipped, found.failing) == (4, 1, 1)
    assert (found.records, found.adopted) == (7, 1)
    assert found.left == 0 + 3 + 1
    assert found.totals == {"words": 0.30000000000000004, "pages": 1}
    assert found.spent == {"cost": 10**16 + 1}
    assert found.saved == {"cost": 1.5}
    assert (found.started_at, found.updated_at) == (10.0, 40.0)
    assert (found.completed_at, found.failed_at, found.error) == (None, 40.0, error)


def test_a_group_is_complete_when_the_last_of_its_streams_is() -> None:
    parts = {("a",): progress(C, completed_at=1.0), ("b",): progress(C, completed_at=3.0)}
    assert summarize((), parts).completed_at == 3.0
    parts["c",] = Progress()
    assert summarize((), parts).completed_at is None
    assert summarize((), {}).completed_at is None


def test_what_is_left_is_not_known_where_one_stream_does_not_know() -> None:
    known = progress(expected=5, confirmed=IndexSet([0, 4]))
    assert summarize((), {("a",): known}).left == 3
    assert summarize((), {("a",): known, ("b",): progress()}).left is None
    assert summarize((), {("a",): known, ("b",): progress(C)}).left == 3
    assert summarize((), {}).left == 0


def test_failing_are_those_that_may_run_again() -> None:
    failed = {n: FailedAttempt(1, None) for n in (1, 2, 5)}
    assert failing(progress(failures=failed)) == 3
    given_up = progress(failures=dict(failed), skipped=IndexSet())
    apply(given_up, given_up.sequence + 1, Record(kind=RecordKind.SKIP, at=2.0, index=2))
    assert failing(given_up) == 2
    assert failing(progress(failures=failed, last_index=4)) == 2
    assert failing(progress(failures=failed, last_index=5)) == 3


def test_nothing_adds_up_to_nothing() -> None:
    found = summarize(("g",), {})
    assert (found.status, found.confirmed, found.left, found.error) == (P, 0, 0, None)
    assert (found.totals, found.spent, found.started_at) == ({}, {}, None)


# ---------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------

PARTS = {
    (): Progress(),
    ("z", "x"): Progress(),
    ("b", "x"): Progress(position=1),
    (PHASE, "p"): Progress(),
    ("a", "x"): Progress(position=2),
    ("c", "x"): Progress(position=0),
    ("a", "y"): Progress(),
}


def test_listed_streams_come_first_in_order_the_librarys_own_never() -> None:
    order = [("c", "x"), ("b", "x"), ("a", "x"), ("z", "x"), ("a", "y")]
    assert in_order(PARTS) == order


def test_groups_are_the_streams_under_one_first_part_in_order() -> None:
    found = groups_of(PARTS)
    assert list(found) == [("c",), ("b",), ("a",), ("z",)]
    assert list(found["a",]) == [("a", "x"), ("a", "y")]
    assert list(groups_of(PARTS, depth=2)) == in_order(PARTS)


def test_phases_are_in_the_order_in_which_they_were_begun() -> None:
    parts = {
        (PHASE, "late"): progress(C, started_at=9.0),
        (PHASE, "early"): progress(X, started_at=1.0),
        ("s",): progress(),
    }
    assert list(phases_of(parts)) == ["early", "late"]
    assert current_phase(parts) == "early"
    parts[PHASE, "later"] = progress(F, started_at=10.0)
    assert current_phase(parts) == "later"
    assert current_phase({}) is None
    assert current_phase({(PHASE, "p"): progress(C)}) is None


# ---------------------------------------------------------------------------------------
# In a run
# ---------------------------------------------------------------------------------------


async def work(run: Run, *key: str, count: int = 2) -> None:
    async with run.open_stream(*key) as stream:
        async for batch in stream.batches(range(count)):
            batch.spend(cost=0.5)
            batch.complete(records=1, totals={"words": 10})


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_the_groups_of_a_run(is_restarted: bool) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await run.add_streams([("b", "x"), ("a", "x"), ("a", "y"), ("c", "x")])
        await work(run, "a", "x")
        await work(run, "a", "y")
        await work(run, "b", "x")
        async with run.open_stream("b", "y") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                break
            assert run.group("b").status is I
        if is_restarted:
            store = store.after_crash()
    async with begin(store) as run:
        found = run.groups()
        assert [(key, group.status) for key, group in found.items()] == [
            (("b",), X),
            (("a",), C),
            (("c",), P),
        ]
        assert run.group("a") == found["a",]
        assert (run.group("a").confirmed, run.group("a").records) == (4, 4)
        assert (run.group("a").totals, run.group("a").spent) == ({"words": 40}, {"cost": 2})
        assert run.group("b", "x").status is C
        with pytest.raises(UnknownStreamError, match="has no stream 'unknown'"):
            run.group("unknown")
        assert run.group("b").left == 2
        assert run.group().confirmed == 7
        assert run.group().left is None  # the length of c is not known
        statistics = run.statistics()
        assert statistics.status is X
        assert statistics.streams == {P: 1, I: 0, C: 3, F: 0, X: 1}
        assert statistics.groups == {P: 1, I: 0, C: 1, F: 0, X: 1}
        assert run.exit_code == 75


async def test_a_group_that_is_half_done_is_in_progress() -> None:
    async with begin("memory:") as run:
        await run.add_streams([("a", "x"), ("a", "y")])
        assert run.group("a").status is P
        await work(run, "a", "x")
        assert run.group("a").status is I
        assert run.statistics().status is I
        await work(run, "a", "y")
        assert run.group("a").status is C


async def test_a_run_that_is_complete_but_for_a_phase_is_not_complete() -> None:
    async with begin("memory:") as run:
        await work(run, "a", "x")
        assert run.statistics().status is C
        async with run.phase("report"):
            assert run.statistics().status is I
        assert run.statistics().status is C


@pytest.mark.parametrize(
    ("done", "left", "expected"),
    [(0, None, None), (5, None, None), (0, 0, None), (1, 1, 50.0), (2, 1, 66.67), (3, 0, 100.0)],
)
def test_percent_is_of_what_is_known(done: int, left: int | None, expected: float | None) -> None:
    complete = msgspec.structs.replace(
        summarize((), {("s",): Progress()}), status=Status.COMPLETE, confirmed=done, left=left
    )
    assert percent_of(complete) == pytest.approx(expected, abs=0.005)
    failed = msgspec.structs.replace(complete, status=Status.FAILED)
    expected = None if left == 0 else expected  # 100 % is said of what is complete only
    assert percent_of(failed) == pytest.approx(expected, abs=0.005)
