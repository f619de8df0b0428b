"""Values cross the public border, never references: what is given, and what is handed out."""

# ruff: noqa: ASYNC240, PT012, SIM117  (a test may block its own loop; what a whole block does is the claim)

from __future__ import annotations

import contextlib
import copy
import gzip
import math
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.journal.test_record import TEXT
from tests.opening import begin
from tests.util.test_plain import VALUES, spoil, told
from trio_ckpt import (
    Batch,
    CheckpointCoordinator,
    CheckpointResult,
    Frontier,
    RetryRule,
    RetryTable,
    RunStoppedError,
    Status,
    Stream,
    read_history,
    run_batches,
)
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt._util.plain import as_plain
from trio_ckpt.stores import MemoryStore

AGAIN = RetryTable((RetryRule((OSError,), attempts=3, backoff_s=0),))
PAGES = {None: ("a", 1), 1: ("b", 2), 2: ("c", 3), 3: ("d", None)}


async def is_sound(store: MemoryStore) -> bool:
    """Whether `verify --full` finds nothing."""
    async with aclosing(check_all(store)) as findings:
        return [finding async for finding in findings] == []


# ---------------------------------------------------------------------------------------
# Cursors
# ---------------------------------------------------------------------------------------


async def follow(store: MemoryStore, *, fail_at: int = -1, stop_at: int = -1) -> list[str]:
    """Follow pages by a cursor that is moved on in place; returns the records."""
    got: list[str] = []
    with contextlib.suppress(RunStoppedError):
        async with begin(store) as run, run.open_stream("s", retry=AGAIN) as stream:
            async for batch in stream.batches():
                where = stream.cursor or {"after": None}
                record, where["after"] = PAGES[where["after"]]
                if (batch.index, batch.attempt) == (fail_at, 1):
                    batch.fail(OSError("once more"))
                    continue
                got.append(record)
                batch.complete(cursor=where, last=where["after"] is None)
                where["after"] = "changed after it was given"
                if batch.index == stop_at:
                    run.request_stop()
    return got


@pytest.mark.parametrize("fail_at", [-1, 1, 2, 3])
async def test_a_cursor_moved_on_in_place_loses_no_page(fail_at: int) -> None:
    store = MemoryStore()
    assert await follow(store, fail_at=fail_at) == ["a", "b", "c", "d"]
    assert await is_sound(store)


@pytest.mark.parametrize("fail_at", [-1, 2])
async def test_nor_over_a_restart(fail_at: int) -> None:
    store = MemoryStore()
    assert await follow(store, stop_at=1) == ["a", "b"]
    assert await follow(store.after_crash(), fail_at=fail_at) == ["c", "d"]


async def test_nor_where_an_exception_ends_the_program() -> None:
    store = MemoryStore()
    with pytest.raises(KeyError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches():
                where = stream.cursor or {"after": None}
                _, where["after"] = PAGES[where["after"]]
                if batch.index == 2:
                    raise KeyError("a bug of the program")
                batch.complete(cursor=where)
    assert await is_sound(store)
    assert await follow(store) == ["c", "d"]


async def test_a_cursor_of_save_is_a_value_too() -> None:
    store, where = MemoryStore(), {"page": [1]}
    async with begin(store) as run, run.open_stream("s") as stream:
        await stream.save(cursor=where)
        where["page"].append(2)
        stream.cursor["page"].append(3)
        assert stream.cursor == {"page": [1]}
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        assert stream.cursor == {"page": [1]}


@pytest.mark.parametrize(
    "cursor",
    [("2024-01-01", 7), {"at": (1, (2,))}, np.float64(0.5), np.int64(3), {"n": [np.bool_(True)]}],
    ids=str,
)
async def test_a_cursor_has_one_kind_now_and_after_a_restart(cursor: Any) -> None:
    store, seen = MemoryStore(), list[str]()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(end=1):
            batch.complete(cursor=cursor)
            await batch.confirm()
            seen.append(told(stream.cursor))
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        seen.append(told(stream.cursor))
    assert seen == [told(as_plain(cursor, "cursor"))] * 3


# ---------------------------------------------------------------------------------------
# Metadata and results
# ---------------------------------------------------------------------------------------


async def test_metadata_of_a_stream_is_what_was_given() -> None:
    store, note = MemoryStore(), {"k": ["confirmed"], "t": (1,)}
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
        await stream.finish(metadata=note)
        spoil(note)
        spoil(stream.metadata)
        assert stream.metadata == {"k": ["confirmed"], "t": [1]}
    assert await is_sound(store)
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        assert stream.metadata == {"k": ["confirmed"], "t": [1]}


async def test_metadata_of_a_batch_is_what_was_given() -> None:
    store, note = MemoryStore(), {"k": ["confirmed"]}
    amounts: dict[str, float] = {"cost": 1}
    results: list[CheckpointResult] = []
    async with begin(store) as run, run.open_stream("s") as stream, trio.open_nursery() as nursery:

        async def wait(batch: Batch[int]) -> None:
            results.append(await batch.token.wait())
            spoil(results[-1].metadata)

        async for batch in stream.batches(range(1)):
            for _ in range(2):
                nursery.start_soon(wait, batch)
            await trio.testing.wait_all_tasks_blocked()
            batch.complete(metadata=note, totals=amounts)
            spoil(note)
            amounts["cost"] = 7
            await batch.confirm()
            results.append(batch.token.result_nowait())
            assert results[-1].metadata == {"k": ["confirmed"]}
    assert len(results) == 3
    (entry,) = [e async for e in read_history(store, "r", ("s",)) if e.kind == "batch"]
    assert (entry.metadata, entry.totals) == ({"k": ["confirmed"]}, {"cost": 1})


@pytest.mark.parametrize("completed_at", [None, datetime.now(UTC)])
async def test_a_result_of_a_bare_token_is_a_value(completed_at: datetime | None) -> None:
    note = {"k": ["given"]}
    async with CheckpointCoordinator() as coordinator:
        token = coordinator.create_checkpoint("r", 0)
        given_result = CheckpointResult(metadata=note, completed_at=completed_at)
        token.complete(given_result)
        spoil(note)
        spoil(given_result.metadata)
        spoil((await token.wait()).metadata)
        assert token.result_nowait().metadata == {"k": ["given"]}


async def test_nan_in_metadata_ends_no_run_and_is_no_damage() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete(metadata={"loss": float("nan"), "worst": [np.float32("inf")]})
        await stream.finish(metadata={"loss": float("-inf"), "of": {"n": float("nan")}})
        shown = told(stream.metadata)
    assert await is_sound(store)
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        assert told(stream.metadata) == shown == "{'loss':float -inf,'of':{'n':float nan}}"
    batches = [e async for e in read_history(store, "r", ("s",)) if e.kind == "batch"]
    assert told(batches[0].metadata) == "{'loss':float nan,'worst':list(float inf)}"


# ---------------------------------------------------------------------------------------
# Items
# ---------------------------------------------------------------------------------------

ITEM = {"url": "/", "tags": ["a"], "at": (1, [2])}


async def work_on(stream: Stream[Any], items: Any) -> list[str]:
    """Work on items, twice on each; each attempt changes the item that it has."""
    seen: list[str] = []

    async def handle(batch: Batch[Any]) -> None:
        seen.append(told(batch.item))
        spoil(batch.item)
        if batch.attempt == 1:
            raise OSError("once more")
        batch.complete()

    await run_batches(stream, items, handle, retry=AGAIN)
    return seen


@pytest.mark.parametrize("kind", ["list", "tuple", "function", "generator"])
async def test_an_attempt_that_changes_its_item_changes_no_other(kind: str) -> None:
    items = [copy.deepcopy(ITEM), {"url": "/2"}]
    sources: dict[str, Any] = {
        "list": items,
        "tuple": tuple(items),
        "function": lambda: items,
        "generator": lambda: (item for item in items),
    }
    async with begin("memory:") as run, run.open_stream("s") as stream:
        seen = await work_on(stream, sources[kind])
        assert seen == [told(ITEM)] * 2 + [told({"url": "/2"})] * 2
        assert items == [ITEM, {"url": "/2"}]


async def test_an_attempt_in_a_plain_loop_changes_no_item() -> None:
    items, seen = [copy.deepcopy(ITEM)], list[str]()
    async with begin("memory:") as run, run.open_stream("s", retry=AGAIN) as stream:
        async for batch in stream.batches(items):
            seen.append(told(batch.item))
            spoil(batch.item)
            if batch.attempt == 1:
                batch.fail(OSError("once more"))
            else:
                batch.complete()
    assert seen == [told(ITEM)] * 2


async def test_an_item_that_is_no_plain_value_is_handed_out_itself(tmp_path: Path) -> None:
    items = [tmp_path / "a", tmp_path / "b"]
    async with begin("memory:") as run, run.open_stream("s") as stream:
        found = []
        async for batch in stream.batches(items, key=str):
            found.append(batch.item)
            batch.complete()
    assert all(one is other for one, other in zip(found, items, strict=True))


async def test_a_program_that_empties_its_list_on_the_way_is_told() -> None:
    store, items, done = MemoryStore(), ["a", "b", "c"], list[str]()
    with pytest.raises(RuntimeError, match="the list of items had 3"):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(items):
                done.append(items.pop(0))
                batch.complete()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(["a", "b", "c"]):
            done.append(batch.item)
            batch.complete()
    assert done == ["a", "b", "c"]


async def test_items_of_a_frontier_are_values() -> None:
    store, given_items = MemoryStore(), [copy.deepcopy(ITEM)]
    plain = told(as_plain(ITEM, "item"))
    frontier = Frontier(given_items)
    spoil(given_items)
    async with begin(store) as run, run.open_stream("s", state=frontier) as stream:
        assert await work_on(stream, None) == [plain] * 2
    async with begin(store.after_crash()) as run, run.open_stream("s", state=frontier) as stream:
        assert await work_on(stream, None) == []
        assert len(stream.state) == 1


async def test_items_that_are_added_are_values() -> None:
    store, seen = MemoryStore(), list[str]()

    async def handle(batch: Batch[Any]) -> None:
        seen.append(told(batch.item))
        if batch.item == "start":
            more = copy.deepcopy(ITEM)
            batch.add([more, more])
            spoil(more)
            batch.add([ITEM])
        spoil(batch.item)
        if batch.item != "start" and batch.attempt == 1:
            batch.fail(OSError("once more"))
        elif batch.item != "start" and batch.attempt == 2:
            batch.skip("given up")
        else:
            batch.complete()

    async with begin(store) as run, run.open_stream("s", state=Frontier(["start"])) as stream:
        await run_batches(stream, None, handle, retry=AGAIN)
        ((_, item, _),) = [entry async for entry in stream.skipped()]
        spoil(item)
        plain = as_plain(ITEM, "item")
        assert [(index, item) async for index, item, _ in stream.skipped()] == [(1, plain)]
    assert seen == ["str 'start'", told(plain), told(plain)]
    async with begin(store.after_crash()) as run, run.open_stream("s", state=Frontier()) as stream:
        assert [told(item) async for _, item, _ in stream.skipped()] == [told(plain)]


def slashed(item: Any) -> str:
    return "/".join(map(str, item))


async def test_one_frontier_serves_many_streams_and_again_after_a_rewind() -> None:
    frontier, seen = Frontier(["u1", "u2"]), list[tuple[str, str]]()

    async def crawl(run: Any, name: str) -> None:
        async def handle(batch: Batch[str]) -> None:
            seen.append((name, batch.item))
            batch.add([f"{batch.item}/more"] if "/" not in batch.item else [])
            batch.complete()

        async with run.open_stream(name, state=frontier) as stream:
            await run_batches(stream, None, handle)
            assert stream.status is Status.COMPLETE
            assert len(stream.state) == 4

    pages = ["u1", "u2", "u1/more", "u2/more"]
    async with begin("memory:") as run:
        for name in "ab":
            await crawl(run, name)
        await run.rewind(("a",), to=-1, reason="once more")
        await crawl(run, "a")
        assert run.exit_code == 0
    assert seen == [(name, page) for name in "aba" for page in pages]
    assert (len(frontier), frontier.left) == (2, 2)


async def test_a_key_sees_an_item_as_it_is_after_a_restart() -> None:
    store, kinds = MemoryStore(), set[str]()

    def key(item: Any) -> str:
        kinds.add(type(item).__name__)
        return slashed(item)

    for _ in range(2):
        frontier = Frontier([("a", 1), ("b", 2), ("a", 1)], key=key)
        async with begin(store) as run, run.open_stream("s", state=frontier) as stream:
            assert len(stream.state) == 2
    assert kinds == {"list"}


# ---------------------------------------------------------------------------------------
# What a program looks at
# ---------------------------------------------------------------------------------------


def spoil_progress(progress: Any) -> None:
    """Change all that a progress holds."""
    for field in attrs.fields(type(progress)):
        value = getattr(progress, field.name)
        if isinstance(value, dict):
            spoil(value)
        elif hasattr(value, "add"):
            value.add(77)
            value.discard(0)
        setattr(progress, field.name, None)


async def some_work(run: Any) -> Any:
    async with run.open_stream("s") as stream:
        async for batch in stream.batches(range(4)):
            batch.spend(usd=0.5)
            if batch.index == 2:
                batch.skip("blank")
            else:
                batch.complete(totals={"words": 3}, cursor={"n": [batch.index]}, records=1)
        await stream.finish(metadata={"k": ["v"]})
        return stream


async def test_what_progress_hands_out_is_a_copy() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        stream = await some_work(run)
        was = stream.progress
        for look in (lambda: stream.progress, lambda: run.view().streams["s",].progress):
            spoil_progress(look())
            assert look() == was
        spoil(run.view().streams)
        assert run.view().streams["s",].progress == was
        assert run.exit_code == 3
    assert await is_sound(store)
    found = await store.load_run("r")
    assert found is not None
    assert found.streams["s",].progress == was


async def test_a_progress_does_not_go_on_changing() -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        before = stream.progress
        async for batch in stream.batches(range(2)):
            batch.complete()
        assert (len(before.confirmed), len(stream.progress.confirmed)) == (0, 2)
        assert before.sequence == 0


def sums_of(record: Any) -> dict[str, Any]:
    """The sums and counts by name in a record of statistics."""
    found = msgspec.structs.asdict(record)
    return {name: dict(value) for name, value in found.items() if isinstance(value, dict)}


def reached(thing: object) -> dict[str, Any]:
    """What can be changed of what the public attributes of an object hold."""
    names = [name for name in dir(thing) if not name.startswith("_")]
    values = {name: getattr(thing, name) for name in names}
    return {name: v for name, v in values.items() if isinstance(v, dict | list | set | bytearray)}


async def test_a_body_reaches_nothing_that_will_be_saved(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", state=Frontier([ITEM])) as stream:

            async def handle(batch: Batch[Any]) -> None:
                batch.add(["more"] if batch.index == 0 else [])
                batch.append_json("lines.jsonl", 1)
                batch.spend(usd=1)
                await batch.note("a", [1])
                batch.complete(metadata={"a": [1]}, totals={"n": 1})
                found = reached(batch)
                assert list(found) == (["item"] if batch.index == 0 else []) + ["notes"]
                spoil(found)
                assert batch.notes == {"a": [1]}
                assert reached(batch.token) == {}

            await run_batches(stream, None, handle)
            assert len(stream.state) == 2
            for thing in (stream, run, run.coordinator, run.coordinator.registry, stream.state):
                for name, value in reached(thing).items():
                    assert getattr(thing, name) is not value, name


async def test_sums_that_are_shown_are_copies() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        stream = await some_work(run)
        for look in (run.statistics, stream.statistics, run.group, lambda: run.groups()["s",]):
            was = sums_of(look())
            for name in was:
                spoil(getattr(look(), name))
            assert sums_of(look()) == was
    async with begin(store) as run:
        with pytest.raises(TypeError):
            run.found.totals["words"] = 0
        assert run.found.totals == {"words": 9}


async def test_a_configuration_is_what_it_was_when_it_was_given() -> None:
    store, config = MemoryStore(), {"langs": ["de"], "deep": {"a": [1]}}
    async with begin(store, config=config):
        spoil(config)
    async with begin(store, config={"langs": ["de"], "deep": {"a": [1]}}):
        pass


# ---------------------------------------------------------------------------------------
# All of it at once
# ---------------------------------------------------------------------------------------


@attrs.frozen
class Step:
    """What is done with one batch."""

    item: Any
    cursor: Any
    metadata: dict[str, Any]
    cost: float
    fails: bool
    ends: bool


STEPS = st.lists(
    st.builds(
        Step,
        VALUES,
        VALUES,
        st.dictionaries(TEXT, VALUES | st.just(float("nan")), max_size=2),
        st.floats(0, 1e6),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def spoil_all(run: Any, stream: Any, *values: Any) -> None:
    """Change whatever a program can lay hands on."""
    for value in (*values, stream.cursor, stream.metadata, run.view().streams):
        spoil(value)
    spoil_progress(stream.progress)
    spoil_progress(run.view().streams["s",].progress)


async def carry_out(steps: list[Step], store: MemoryStore) -> MemoryStore:
    """Do the steps in as many sessions as they say; everything that is seen is right."""
    items = [step.item for step in steps]
    cursor: Any = None
    while True:
        with contextlib.suppress(RunStoppedError):
            async with begin(store) as run, run.open_stream("s", retry=AGAIN) as stream:
                async for batch in stream.batches(copy.deepcopy(items)):
                    step = copy.deepcopy(steps[batch.index])
                    assert told(stream.cursor) == told(as_plain(cursor, "cursor"))
                    assert told(batch.item) == told(step.item)
                    spoil_all(run, stream, batch.item)
                    if step.fails and batch.attempt == 1:
                        batch.fail(OSError("once more"))
                        continue
                    cost = {"usd": step.cost}
                    batch.complete(cursor=step.cursor, metadata=step.metadata, totals=cost)
                    cursor = steps[batch.index].cursor
                    spoil_all(run, stream, step.cursor, step.metadata, cost)
                    if step.ends:
                        run.request_stop()
                assert run.group("s").totals["usd"] == math.fsum(step.cost for step in steps)
                return store
        assert await is_sound(store)
        store = store.after_crash()


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_no_change_to_what_is_seen_changes_what_is_kept(steps: list[Step]) -> None:
    async def main() -> None:
        store = await carry_out(steps, MemoryStore())
        assert await is_sound(store)
        history = [e async for e in read_history(store, "r", ("s",)) if e.kind == "batch"]
        found = {entry.batch_index: told(entry.metadata) for entry in history}
        assert found == {
            index: told(as_plain(step.metadata, "metadata", allow_nan=True))
            for index, step in enumerate(steps)
        }

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def crawl(items: list[Any], parts: list[int], store: MemoryStore) -> list[str]:
    """Find items on the way, in several sessions; each attempt changes what it can."""
    seen: list[str] = []
    stop_after = list(parts)

    async def handle(batch: Batch[Any]) -> None:
        spoil(batch.item["value"])
        if batch.attempt == 1 and batch.index % 3 == 1:
            raise OSError("once more")
        more = copy.deepcopy(items[2 * batch.index + 1 : 2 * batch.index + 3])
        batch.add(more)
        spoil(more)
        batch.complete()
        seen.append(told(items_of[batch.index]))
        if stop_after and batch.index >= stop_after[0]:
            stop_after.pop(0)
            run.request_stop()

    items_of: dict[int, Any] = {}
    while True:
        with contextlib.suppress(RunStoppedError):
            seeds = copy.deepcopy(items[:1])
            frontier = Frontier(seeds)
            spoil(seeds)
            async with begin(store) as run, run.open_stream("s", state=frontier) as stream:

                async def noted(batch: Batch[Any]) -> None:
                    items_of[batch.index] = copy.deepcopy(batch.item)
                    await handle(batch)

                await run_batches(stream, None, noted, retry=AGAIN)
                assert stream.status is Status.COMPLETE
                return seen
        assert await is_sound(store)
        store = store.after_crash()


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=7), st.lists(st.integers(0, 6), max_size=2))
def test_no_change_to_an_item_changes_what_a_frontier_has(
    values: list[Any], parts: list[int]
) -> None:
    items = [{"n": place, "value": value} for place, value in enumerate(values)]
    clock = trio.testing.MockClock(autojump_threshold=0)
    seen = trio.run(crawl, items, sorted(parts), MemoryStore(), clock=clock)
    assert seen == [told(as_plain(item, "item")) for item in items]


# ---------------------------------------------------------------------------------------
# States
# ---------------------------------------------------------------------------------------


@attrs.define
class Model:
    """A state with arrays that share memory, and a field that is not saved."""

    weights: np.ndarray[Any, Any]
    row: np.ndarray[Any, Any]
    notes: list[Any]
    client: Any = attrs.field(default=None, metadata={"exclude": True})


def new_model() -> Model:
    weights = np.zeros((4, 5))
    notes: list[Any] = [1, ("a", {2})]
    return Model(weights, weights[1], [notes, notes], object())


async def train(run: Any, name: str, state: Any) -> Any:
    """Change the state in three batches; returns it."""
    async with run.open_stream(name, state=state) as stream:
        async for batch in stream.batches(range(3)):
            stream.state.weights += 1
            stream.state.notes.append(batch.index)
            batch.complete()
        return stream.state


async def test_one_initial_state_serves_many_streams_and_after_a_rewind() -> None:
    store, initial = MemoryStore(), new_model()
    async with begin(store) as run:
        states = [await train(run, name, initial) for name in "ab"]
        await run.rewind(("a",), to=-1, reason="once more")
        states.append(await train(run, "a", initial))
    for state in states:
        assert state.weights.tolist() == [[3.0] * 5] * 4
        assert state.notes[2:] == [0, 1, 2]
        assert state.client is initial.client
        state.weights[1, 2] = 7  # what was aliased is aliased in the copy
        assert state.row[2] == 7
        assert state.notes[0] is state.notes[1]
    assert initial.weights.sum() == 0
    assert len(initial.notes) == 2
    async with begin(store.after_crash()) as run:
        assert (await train(run, "b", initial)).weights.tolist() == [[3.0] * 5] * 4


async def test_a_change_to_the_given_state_is_no_change_to_the_stream() -> None:
    given_state: dict[str, Any] = {"n": [0], "a": np.zeros(3)}
    async with begin("memory:") as run, run.open_stream("s", state=given_state) as stream:
        spoil(given_state["n"])
        given_state["a"] += 1
        assert stream.state["n"] == [0]
        assert stream.state["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("given_state", "other"),
    [
        ({"n": 0}, [1, 2]),
        ([0], {"n": 0}),
        (new_model(), {"n": 0}),
        (0, "1"),
        ("text", b"text"),
        (np.zeros(2), [0.0]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_state_of_another_kind_is_refused_when_it_is_set(
    given_state: Any, other: Any
) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", state=given_state) as stream:
        async for batch in stream.batches(range(2)):
            with pytest.raises(TypeError, match=r"stream\.state must be a .*, not "):
                stream.state = other
            batch.complete()
    async with begin(store.after_crash()) as run, run.open_stream("s", state=given_state) as stream:
        assert type(stream.state) is type(given_state)


async def test_a_state_of_the_same_kind_can_be_set() -> None:
    async with begin("memory:") as run, run.open_stream("s", state=1) as stream:
        async for batch in stream.batches(range(2)):
            stream.state = 2.5 if batch.index else np.float32(1)  # type: ignore[assignment]
            batch.complete()
        assert stream.state == 2.5


async def test_metadata_of_a_snapshot_is_what_it_was_at_the_point(autojump_clock: Any) -> None:
    store, note = MemoryStore(), {"loss": [np.float32("nan")]}
    async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=0) as snapshot:
                snapshot.metadata["note"] = note
                stream.state["n"] += 1
                await snapshot.point("half")
                spoil(note)
                snapshot.metadata.clear()
                await snapshot.wait()
                assert (snapshot.saved, snapshot.skipped) == (1, 0)
            batch.complete()
    (entry,) = [e async for e in read_history(store, "r", ("s",)) if e.kind == "snapshot"]
    assert told(entry.metadata) == "{'note':{'loss':list(float nan)},'label':str 'half'}"


class SlowStore(MemoryStore):
    """It takes a second to say who owns a run, which each write asks first."""

    async def save(self, run: Any, group: Any, folds: Any = (), *, summary: Any = None) -> Any:
        if not group:
            await trio.sleep(1)
        return await super().save(run, group, folds, summary=summary)


async def test_an_output_is_what_it_was_when_it_was_given(
    autojump_clock: Any, tmp_path: Path
) -> None:
    content, store = bytearray(b"given"), SlowStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await trio.sleep(60)  # an answer of the store is too old then
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batch.write_bytes, "a", content)
                nursery.start_soon(batch.write_bytes, "b", memoryview(content)[1:3])
                await trio.sleep(0.5)
                content[:] = b"after"
            records = [{"n": [1]}]
            batch.append_json("c", *records)
            spoil(records)
            content[:] = b"given"
            batch.append_bytes("d", content)
            batch.append_bytes("e", content, compress="gzip")
            content[:] = b"after"
            batch.complete(outputs=["a", "b"])
    compressed = (tmp_path / "e").read_bytes()
    assert gzip.decompress(compressed) == b"given"
    (tmp_path / "e").unlink()
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    del found["manifest.json"]
    assert found == {"a": "given", "b": "iv", "c": '{"n":[1]}\n', "d": "given"}
    with pytest.raises(TypeError, match="bytes or a buffer"):
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("t") as stream:
            async for batch in stream.batches(range(1)):
                await batch.write_bytes("d", "text")  # type: ignore[arg-type]
