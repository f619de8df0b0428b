"""Notes and reservations of open batches: durable when they return, and refused where they must."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin, begin_blocking
from trio_ckpt import (
    Batch,
    Limits,
    NotEncodableError,
    RetryRule,
    RetryTable,
    RunStoppedError,
    StoreError,
    Then,
    open_maintenance,
    read_history,
    run_batches,
)
from trio_ckpt._commit import intents
from trio_ckpt._journal.progress import Progress
from trio_ckpt.stores import MemoryStore

AGAIN = RetryTable([RetryRule((OSError,), attempts=9, backoff_s=0.0)])
SKIP = RetryTable([RetryRule((OSError,), attempts=1, then=Then.SKIP)])


async def progress_in(store: MemoryStore) -> Progress:
    view = await store.reopen().load_run("r")
    assert view is not None
    return view.streams["s",].progress


class FailingOnce(MemoryStore):
    """A store of which one save fails, once another task has run."""

    def __init__(self) -> None:
        super().__init__()
        self.is_failing = False
        self.is_saving = trio.Event()

    async def save(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_failing:
            return await super().save(*args, **kwargs)
        self.is_failing = False
        self.is_saving.set()
        await trio.testing.wait_all_tasks_blocked()
        raise StoreError("as planned")


# -- notes ---------------------------------------------------------------------------------------


async def test_a_note_stays_though_all_that_is_confirmed_is_rewound() -> None:
    """The job that it names goes on, and costs what it costs."""
    store = MemoryStore()
    with pytest.raises(KeyError):
        async with begin(store) as run, run.open_stream("s") as stream:
            await run_batches(stream, list(range(2)), _note_and_fail, concurrency=1)
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.rewind(("s",), to=-1, reason="a test")
    progress = await progress_in(store)
    assert not progress.confirmed
    assert progress.assumed == {}
    found: dict[int, Any] = {}
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            found[batch.index] = batch.notes.get("job")
            batch.complete()
    assert found == {0: None, 1: "j-1"}
    assert (await progress_in(store)).reserved == {}


async def _note_and_fail(batch: Batch[int]) -> None:
    if batch.index:
        await batch.note("job", "j-1", cost_usd=2)
        raise KeyError("as planned")
    batch.complete()


async def test_a_note_is_durable_when_it_returns() -> None:
    store, killed = MemoryStore(), list[MemoryStore]()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.note("provider_batch", {"id": "b-1", "parts": (1, 2)})
            killed.append(store.after_crash())
            batch.complete()
    async with begin(killed[0]) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            assert batch.attempt == 1
            assert batch.notes == {"provider_batch": {"id": "b-1", "parts": [1, 2]}}
            batch.complete()
            await batch.confirm()
            assert batch.notes == {}


async def test_notes_are_read_by_the_next_attempt_and_are_copies() -> None:
    async with begin() as run, run.open_stream("s", retry=AGAIN) as stream:
        async for batch in stream.batches(range(2)):
            if batch.attempt == 1:
                assert batch.notes == {}
                value = [1]
                await batch.note("a", value)
                value.append(2)
                await batch.note("a", [*value, 3])
                value.append(4)
                batch.notes["a"].append(5)
                batch.fail(OSError("again"))
            else:
                assert batch.notes == {"a": [1, 2, 3]}
                batch.complete()


async def test_notes_of_a_skipped_batch_are_there_when_it_is_requeued() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", retry=SKIP) as stream:
        async for batch in stream.batches(range(1)):
            await batch.note("a", 1)
            batch.fail(OSError("down"))
    async with begin(store) as run, run.open_stream("s", retry_failed=True) as stream:
        async for batch in stream.batches(range(1)):
            assert batch.notes == {"a": 1}
            batch.complete()


@pytest.mark.parametrize("notes_too", [True, False])
async def test_another_item_does_not_see_the_notes_of_the_one_before(notes_too: bool) -> None:
    store, killed, limits = MemoryStore(), list[MemoryStore](), Limits(spent={"usd": 9})
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "b"]):
            if batch.index == 1:
                await batch.note("intent", "b", usd=0.5)
                await batch.note("job", "of b")
                killed.append(store.after_crash())
            batch.complete()
    async with begin(killed[0], limits=limits) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "c"]):
            assert (batch.item, batch.notes) == ("c", {})
            if notes_too:
                await batch.note("job", "of c", usd=0.125)
                assert batch.notes == {"job": "of c"}
            batch.complete()
        statistics = run.statistics()
    assert statistics.noted == statistics.reserved == {}
    assert statistics.spent == {"usd": 0.125 if notes_too else 0.5}
    assert statistics.assumed == ({"usd": 0.5} if notes_too else {})


async def test_notes_of_many_batches_share_a_commit() -> None:
    class Counting(MemoryStore):
        saves = 0

        async def save(self, *args: Any, **kwargs: Any) -> Any:
            self.saves += 1
            return await super().save(*args, **kwargs)

    store = Counting()
    async with begin(store) as run, run.open_stream("s") as stream:

        async def work(batch: Batch[int]) -> None:
            await batch.note("a", batch.index)
            batch.complete()

        before = store.saves
        await run_batches(stream, range(256), work, concurrency=64)
        assert store.saves - before < 256 / 4
        assert stream.progress.notes is None


@pytest.mark.parametrize("method", ["note", "reserve"])
async def test_what_is_settled_can_note_and_reserve_nothing(method: str) -> None:
    async def call(batch: Batch[int]) -> None:
        await (batch.note("a", 1) if method == "note" else batch.reserve(usd=1))

    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
            with pytest.raises(RuntimeError, match=rf"batch 0 is completed: {method}\(\) is for"):
                await call(batch)
        with pytest.raises(RuntimeError, match=rf"batch 0 is over: {method}\(\) is for"):
            await call(batch)
    assert not hasattr(run.phase("p"), "note")  # a phase is no work that is tried again


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("a", object(), NotEncodableError, "an object is not JSON-like"),
        ("a", float("nan"), NotEncodableError, "not a finite number"),
        ("a", "x" * intents.MAX_NOTE_BYTES, NotEncodableError, "put large values into an output"),
        ("", 1, ValueError, "name must not be empty"),
        (1, 1, TypeError, "name must be"),
        ("x" * 201, 1, ValueError, "name must have at most 200 characters, not 201"),
        ("\udc80", 1, NotEncodableError, "lone surrogate"),
    ],
)
async def test_a_note_that_cannot_be_kept_is_refused(
    name: Any, value: Any, error: type[Exception], match: str
) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(error, match=match):
                await batch.note(name, value)
            assert stream.progress.sequence == 0  # nothing was saved, and the batch is open
            batch.complete()


async def test_too_many_notes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            for number in range(intents.MAX_BATCH_NOTES):
                await batch.note(f"n{number}", number)
            with pytest.raises(ValueError, match="batch 0 has 32 notes, which is the limit"):
                await batch.note("one more", 1)
            await batch.note("n0", "in place of another.")
            monkeypatch.setattr(intents, "MAX_STREAM_NOTES_BYTES", 200)
            with pytest.raises(ValueError, match=r"the notes of the stream have .* bytes, of at"):
                await batch.note("n0", "x" * 100)
            monkeypatch.setattr(intents, "MAX_STREAM_NOTES_BYTES", 1)
            await batch.note("n0", "in place of that one")  # it takes as much as before
            batch.complete()


async def test_a_note_is_in_the_history() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.note("a", {"id": 1})
            await batch.reserve(usd=0.5)
            batch.spend(usd=0.25)
            batch.complete()
    every = [one async for one in read_history(store, "r", ("s",))]
    kinds = [(one.kind, dict(one.metadata), dict(one.reserved)) for one in every[::-1]]
    assert kinds[:3] == [
        ("intent", {"a": {"id": 1}}, {}),
        ("intent", {}, {"usd": 0.5}),
        ("batch", {}, {"usd": -0.5}),
    ]


# -- reservations --------------------------------------------------------------------------------


async def test_a_kill_leaves_what_was_reserved_as_spent() -> None:
    store, killed = MemoryStore(), list[MemoryStore]()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.reserve(usd=0.5)
            batch.spend(usd=0.125)
            await batch.reserve(usd=0.25)
            statistics = run.statistics()
            assert statistics.reserved == {"usd": 0.375}  # of the first, what it has cost
            assert statistics.assumed == {}
            killed.append(store.after_crash())
            batch.complete()
    async with begin(killed[0], limits=Limits(spent={"usd": 0.75})) as run:
        assert run.found.assumed == {"usd": 0.375}
        assert "0.375 usd assumed spent" in str(run.found)
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                await batch.reserve(usd=0.375)
                assert run.statistics().assumed == {"usd": 0.375}
                batch.spend(usd=0.25)
                batch.complete()
        assert run.statistics().assumed == {"usd": 0.375}
        assert stream.statistics().spent == {"usd": 0.25}
        assert stream.statistics().reserved == {}


async def test_a_limit_has_no_room_for_more_than_is_left() -> None:
    store, begun = MemoryStore(), list[int]()

    async def work(batch: Batch[int]) -> None:
        await batch.reserve(usd=0.25)
        begun.append(batch.index)
        await trio.lowlevel.checkpoint()
        batch.spend(usd=0.25)
        batch.complete()

    with pytest.raises(RunStoppedError) as stopped:
        async with begin(store, limits=Limits(spent={"usd": 1})) as run, run.open_stream("s") as s:
            await run_batches(s, range(100), work, concurrency=64)
    assert stopped.value.exit_code == 75
    assert stopped.value.reason is not None
    assert "limit spent: 1 of 1 usd are spent or reserved" in stopped.value.reason
    assert "no room for 0.25" in stopped.value.reason
    assert len(begun) == 4
    progress = await progress_in(store)
    assert (len(progress.confirmed), progress.spent["usd"].value) == (4, 1)
    assert progress.reserved == {}
    assert not progress.failures  # those for which there was no room have not failed


async def test_a_start_has_no_room_for_what_is_assumed() -> None:
    store, killed = MemoryStore(), list[MemoryStore]()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.reserve(usd=0.5)
            killed.append(store.after_crash())
            batch.complete()
    with pytest.raises(RunStoppedError, match=r"0\.5 of 1 usd are spent or reserved"):
        async with begin(killed[0], limits=Limits(spent={"usd": 1})) as run:  # noqa: SIM117
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(1)):
                    await batch.reserve(usd=0.75)
    begun = list[int]()
    with pytest.raises(RunStoppedError, match="nothing is handed out until that changes"):
        async with begin(killed[0], limits=Limits(spent={"usd": 0.5})) as run:  # noqa: SIM117
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(1)):
                    begun.append(batch.index)
    assert begun == []


@pytest.mark.parametrize("end", ["raise", "fail", "skip", "complete", "cancel"])
async def test_what_an_attempt_does_not_settle_stays_assumed(end: str) -> None:
    store = MemoryStore()
    with trio.CancelScope() as scope:
        async with begin(store) as run, run.open_stream("s", retry=SKIP) as stream:

            async def work(batch: Batch[int]) -> None:
                await batch.reserve(usd=0.5)
                batch.spend(usd=0.125)
                await batch.reserve(usd=0.25)
                if end == "raise":
                    raise OSError("down")
                if end == "cancel":
                    scope.cancel()
                    await trio.sleep(1)
                getattr(batch, end)(*([] if end == "complete" else [OSError("down")]))

            await run_batches(stream, range(1), work, concurrency=1)
    progress = await progress_in(store)
    assert progress.spent["usd"].value == 0.125
    assert progress.reserved["usd"].value == 0.25


async def test_a_reservation_that_is_not_saved_is_not_counted() -> None:
    class Failing(MemoryStore):
        is_failing = False

        async def save(self, *args: Any, **kwargs: Any) -> Any:
            if self.is_failing:
                raise StoreError("as planned")
            return await super().save(*args, **kwargs)

    store, limits = Failing(), Limits(spent={"usd": 1})
    async with begin(store, limits=limits) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.reserve(usd=0.25)
            store.is_failing = True
            with pytest.raises(StoreError, match="as planned"):
                await batch.reserve(usd=0.75)
            store.is_failing = False
            await batch.reserve(usd=0.75)  # the limit has room for it
            assert run.statistics().reserved == {"usd": 1}
            batch.spend(usd=0.25)
            batch.spend(usd=0.5)
            batch.complete()
        assert run.statistics().reserved == run.statistics().assumed == {}


async def test_a_failed_reservation_that_another_call_has_settled() -> None:
    store = FailingOnce()
    async with begin(store, limits=Limits(spent={"usd": 9})) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.reserve(usd=2)
            store.is_failing = True
            with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="as planned")):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(batch.reserve, usd=1))
                    await store.is_saving.wait()
                    batch.spend(usd=1.5)  # of the call that reserved 2
            batch.complete()
        assert run.statistics().spent == {"usd": 1.5}
        assert run.statistics().assumed == run.statistics().reserved == {}


async def test_a_cancelled_attempt_counts_only_what_it_has_cost() -> None:
    begun = list[int]()
    async with begin(limits=Limits(spent={"usd": 1})) as run, run.open_stream("s") as stream:
        with trio.CancelScope() as scope:
            async for batch in stream.batches(range(1)):
                await batch.reserve(usd=1)
                batch.spend(usd=0.125)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        async for batch in stream.batches(range(2)):
            await batch.reserve(usd=0.5)
            begun.append(batch.index)
            batch.spend(usd=0.25)
            batch.complete()
    assert begun == [0, 1]


async def test_what_an_attempt_leaves_reserved_stops_the_run_at_its_limit() -> None:
    begun = list[int]()
    with pytest.raises(RunStoppedError, match="1 of 1 usd are spent"):
        async with begin(limits=Limits(spent={"usd": 1})) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(9)):
                begun.append(batch.index)
                await batch.reserve(usd=1)
                batch.complete()
    assert begun == [0]


async def test_the_cost_of_a_note_is_settled_by_a_later_session() -> None:
    """A job that outlives its process: what it costs is known when it is found again."""
    store, killed = MemoryStore(), list[MemoryStore]()
    limits = Limits(spent={"usd": 1})
    async with begin(store, limits=limits) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.note("job", None, usd=1)
            await batch.note("job", "j-1")  # what it may cost stays as it was
            statistics = run.statistics()
            assert (statistics.noted, statistics.assumed) == ({"usd": 1}, {})
            killed.append(store.after_crash())
            batch.complete()
    assert (await progress_in(store)).spent["usd"].value == 1
    async with begin(killed[0], limits=limits) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):  # what is noted keeps no start from going on
            if batch.index == 0:
                assert batch.notes == {"job": "j-1"}
                await batch.note("job", "j-1", usd=0.25)
                batch.spend(usd=0.125)
            else:
                await batch.reserve(usd=0.625)
                batch.spend(usd=0.5)
            batch.complete()
        statistics = run.statistics()
        assert (statistics.spent, statistics.saved) == ({"usd": 0.875}, {"usd": 0.875})
        assert (statistics.noted, statistics.assumed) == ({}, {})
    assert (await progress_in(killed[0])).reserved == {}


@pytest.mark.parametrize("end", ["fail", "skip", "cancel"])
async def test_the_cost_of_a_note_stays_with_its_batch(end: str) -> None:
    store = MemoryStore()
    with trio.CancelScope() as scope:
        async with begin(store) as run, run.open_stream("s", retry=SKIP) as stream:
            async for batch in stream.batches(range(1)):
                await batch.note("job", 1, usd=0.5)
                await batch.note("job", 1, usd=0.25)
                if end == "cancel":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                getattr(batch, end)(OSError("down"))
    progress = await progress_in(store)
    assert progress.notes is not None
    assert progress.notes.total["usd"].value == progress.reserved["usd"].value == 0.25
    assert progress.spent == progress.assumed == {}
    async with begin(store) as run, run.open_stream("s", retry_failed=True) as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
    progress = await progress_in(store)
    assert (progress.spent["usd"].value, progress.reserved) == (0.25, {})


async def test_a_limit_has_no_room_for_a_note_that_costs_too_much() -> None:
    store, noted = MemoryStore(), list[int]()
    with pytest.raises(RunStoppedError, match=r"no room for 0\.5"):
        async with begin(store, limits=Limits(spent={"usd": 1})) as run:  # noqa: SIM117
            async with run.open_stream("s") as stream:

                async def work(batch: Batch[int]) -> None:
                    await batch.note("job", batch.index, usd=0.5)
                    noted.append(batch.index)
                    await batch.note("job", batch.index, usd=0.25)
                    batch.complete()

                await run_batches(stream, range(9), work, concurrency=3)
    assert len(noted) == 2
    progress = await progress_in(store)
    assert progress.spent["usd"].value == 0.5
    assert progress.reserved == {}


async def test_the_cost_of_a_note_is_spent_when_its_batch_is_confirmed() -> None:
    begun = list[int]()
    with pytest.raises(RunStoppedError, match="1 of 1 usd are spent"):
        async with begin(limits=Limits(spent={"usd": 1})) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(9)):
                begun.append(batch.index)
                await batch.note("job", 1, usd=1)
                batch.complete()
    assert begun == [0]


async def test_a_note_that_is_being_saved_is_waited_for() -> None:
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="wait for that first")):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(batch.note, "a", 1)
                    nursery.start_soon(batch.note, "a", 2)
            await batch.note("a", 3)
            assert batch.notes == {"a": 3}
            batch.complete()


async def test_a_reservation_of_zero_or_of_nothing_changes_nothing() -> None:
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.reserve()
            await batch.reserve(usd=0)
            with pytest.raises(NotEncodableError, match="an amount is >= 0"):
                await batch.reserve(usd=-1)
            batch.complete()
        assert stream.progress.reserved == {}


def test_a_synchronous_program_has_notes_and_reservations() -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError):  # noqa: SIM117
        with begin_blocking(store, limits=Limits(spent={"usd": 1})) as run:
            with run.open_stream("s") as stream:
                for batch in stream.batches(range(9)):
                    batch.note("a", [batch.index])
                    assert batch.notes == {"a": [batch.index]}
                    batch.reserve(usd=0.5)
                    batch.spend(usd=0.5)
                    batch.complete()
    progress = trio.run(progress_in, store)
    assert len(progress.confirmed) == 2
