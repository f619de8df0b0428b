"""Which batches can be given up from outside, and what a start makes of that."""

from __future__ import annotations

import pytest

from tests.opening import begin
from trio_ckpt._commit.give_up import MAX_GIVEN_UP, check_done, known_end, skip_records
from trio_ckpt._commit.saves import save_records
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.progress import FailedAttempt, Progress
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import MemoryStore


def some() -> Progress:
    """A stream of ten batches, of which two are done and one has failed twice."""
    failures = {5: FailedAttempt(2, None), 40: FailedAttempt(1, None)}
    return Progress(confirmed=IndexSet([0, 1]), failures=failures, expected=10)


def test_batches_that_are_left_are_given_up() -> None:
    progress = some()
    records = skip_records(progress, IndexSet([3, 5]), "by ann", stop=known_end(progress))
    assert [(r.index, r.attempts, r.error and r.error.message) for r in records] == [
        (3, 0, "by ann"),
        (5, 2, "by ann"),
    ]
    for sequence, record in enumerate(records, 1):
        apply(progress, sequence, record)
    assert list(progress.skipped) == [3, 5]
    assert 5 not in progress.failures


@pytest.mark.parametrize(
    ("indexes", "reason"),
    [
        ([1, 3], "batch 1 is done already"),
        ([7], "batch 7 is being worked on"),
        ([9, 10, 11], "batches 10-11 are not known to be in the stream"),
        (range(MAX_GIVEN_UP + 1), "at most 1,000 are given up at a time"),
    ],
)
def test_what_cannot_be_given_up_is_refused(indexes: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        skip_records(some(), IndexSet(indexes), "by ann", stop=10, is_open={7})


def test_only_what_is_done_is_re_queued_however_much_is_asked_for() -> None:
    check_done(some(), IndexSet([0, 1]))
    with pytest.raises(ValueError, match=r"batches 2-\d+ are neither confirmed nor skipped"):
        check_done(some(), IndexSet.from_steps((0, 2**52)))


def test_what_is_deferred_is_re_queued_by_another_command() -> None:
    progress = some()
    apply(progress, 1, Record(kind=RecordKind.ATTEMPT, at=1.0, index=3, due=9.0))
    with pytest.raises(ValueError, match=r"batch 3 is neither .*`trio-ckpt retry` lifts deferrals"):
        check_done(progress, IndexSet([1, 3]))
    with pytest.raises(ValueError, match=r"skipped$"):
        check_done(progress, IndexSet([1, 4]))


def test_of_a_stream_without_a_known_end_what_was_tried_is_given_up() -> None:
    assert skip_records(some(), IndexSet([5, 40]), "by ann", stop=None)
    with pytest.raises(ValueError, match="batch 6 is not known"):
        skip_records(some(), IndexSet([6]), "by ann", stop=None)


def test_items_of_a_frontier_are_not_given_up_by_number() -> None:
    with pytest.raises(ValueError, match="has a Frontier"):
        skip_records(Progress(has_frontier=True), IndexSet([0]), "by ann", stop=9)


async def test_a_start_with_the_same_list_goes_on_after_it() -> None:
    store = MemoryStore()
    items = [{"name": n} for n in range(4)]
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(items, end=0):
            batch.complete()
    from_store = await store.load_run("r")
    assert from_store is not None
    async with begin(store) as run, run.open_stream("s") as stream:
        committer = stream._open_stream.committer
        log = stream._open_stream.stream_log
        records = skip_records(stream.progress, IndexSet([2]), "by ann", stop=4)
        await save_records(committer, [(log, record) for record in records])
    done: list[int] = []
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(items):
            done.append(batch.index)
            batch.complete()
        assert run.exit_code == 3
    assert done == [1, 3]
