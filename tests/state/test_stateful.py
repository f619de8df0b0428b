"""Stateful objects: saved by what they give, loaded into the object that the program has."""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from typing import Any

import attrs
import numpy as np
import pytest

from tests.opening import begin
from tests.state.tree.shapes import there_and_back
from trio_ckpt import (
    BatchFailedError,
    NotEncodableError,
    RetryRule,
    RetryTable,
    StateChangedError,
    StoreDamagedError,
)
from trio_ckpt._commit.state_manager import THREAD_FROM_BYTES
from trio_ckpt.state._arrays.engine import ArrayEngine
from trio_ckpt.state._plan import Plan
from trio_ckpt.state._tree.format import Tag
from trio_ckpt.stores import MemoryStore

ROWS = 60_000  # of 8 bytes: a buffer of its own blob


class Optimizer:
    """One that keeps a momentum, as those of torch do: what it loads it copies into its own."""

    def __init__(self, size: int = 4, dtype: Any = np.float64) -> None:
        self.momentum = np.zeros(size, dtype)
        self.steps = 0
        self.loads = 0

    def step(self, at: int) -> None:
        self.momentum[at] += 1.5
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"state": {0: {"momentum": self.momentum}}, "groups": [{"steps": self.steps}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momentum[:] = state["state"][0]["momentum"]
        self.steps = state["groups"][0]["steps"]
        self.loads += 1


class Generator:
    """A random generator with the methods that those of torch have."""

    def __init__(self) -> None:
        self.state = b"begin"

    def get_state(self) -> bytes:
        return self.state

    def set_state(self, state: bytes) -> None:
        self.state = state


class Moved(Optimizer):
    pass


class Hostile:
    def __init__(self, gives: Any = None, takes: Any = None) -> None:
        self.gives, self.takes = gives, takes

    def state_dict(self) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives

    def load_state_dict(self, state: Any) -> None:
        if isinstance(self.takes, Exception):
            raise self.takes
        if self.takes is not None:
            self.takes(state)


@attrs.define
class Training:
    optimizer: Any
    generator: Any = None
    losses: list[float] = attrs.field(factory=list)


async def train(store: MemoryStore, state: Any, batches: int, body: Any, **options: Any) -> Any:
    async with begin(store) as run, run.open_stream("s", state=state, **options) as stream:
        async for batch in stream.batches(range(batches)):
            problem = body(stream.state, batch)
            if problem is None:
                batch.complete()
            else:
                batch.fail(problem)
        return stream.state


def step(state: Training, batch: Any) -> None:
    state.optimizer.step(batch.index % 4)
    state.generator.state += b"."
    state.losses.append(float(state.optimizer.momentum.sum()))


async def test_what_was_saved_is_loaded_into_the_object_of_the_program() -> None:
    store, first = MemoryStore(), Training(Optimizer(), Generator())
    saved = await train(store, first, 3, step)
    assert saved.optimizer is first.optimizer
    assert saved is not first
    assert first.losses == []
    assert first.optimizer.loads == 0

    second = Training(Optimizer(), Generator())
    state = await train(store.after_crash(), second, 5, step)
    assert (state.optimizer, state.generator) == (second.optimizer, second.generator)
    assert second.optimizer.momentum.tolist() == [3.0, 1.5, 1.5, 1.5]
    assert (second.optimizer.steps, second.optimizer.loads) == (5, 1)
    assert second.generator.state == b"begin....."
    assert state.losses == [1.5, 3.0, 4.5, 6.0, 7.5]


async def test_a_failed_attempt_is_undone_in_the_object() -> None:
    retry = RetryTable((RetryRule((OSError,), attempts=3, backoff_s=0),))

    def flaky(state: Any, batch: Any) -> OSError | None:
        state["o"].step(0)
        state["g"].state += b"!"
        return None if batch.index != 1 or batch.attempt == 3 else OSError("again")

    given: dict[str, Any] = {"o": Optimizer(), "g": Generator()}
    await train(MemoryStore(), given, 3, flaky, retry=retry)
    assert given["o"].momentum.tolist() == [4.5, 0, 0, 0]
    assert given["g"].state == b"begin!!!"

    def bare(state: Any, batch: Any) -> OSError | None:  # no array: its first state has no record
        state.state += b"?"
        return OSError("again") if batch.attempt == 1 else None

    alone = Generator()
    await train(MemoryStore(), alone, 2, bare, retry=retry)
    assert alone.state == b"begin??"


async def test_only_what_changed_of_the_arrays_is_written() -> None:
    store = MemoryStore()
    for first in (0, 3):  # in the session that begins, and in the one that resumes
        given = {"o": Optimizer(ROWS)}
        async with begin(store) as run, run.open_stream("s", state=given) as stream:
            async for batch in stream.batches(range(first + 3)):
                stream.state["o"].step(batch.index)
                batch.complete()
                await batch.confirm()
                report = stream.statistics().state
                assert report is not None
                (arrays,) = report.arrays.values()
                assert list(report.arrays) == ["state.o.state[0].momentum"]
                assert 0 < arrays.changed_bytes <= 4 * 4096  # it begins inside a page
                assert arrays.nbytes == 8 * ROWS
        store = store.after_crash()


def test_an_object_at_two_places_is_one_and_keeps_its_name() -> None:
    taken: list[Any] = []
    one = Hostile({"n": 1}, lambda state: taken.append((1, state)))
    other = Hostile({"n": 2}, lambda state: taken.append((2, state)))
    plan = Plan.of({"a": one, "b": [other, one]})
    found = there_and_back(plan, {"b": (one, one), "c": other})
    assert found == {"b": (one, one), "c": other}
    assert plan.flatten({"b": one, "c": other}).tree["b"][Tag.STATEFUL][0] == "state.a"
    assert taken == [(1, {"n": 1}), (2, {"n": 2})]


def test_the_notes_of_a_module_on_its_versions_come_back() -> None:
    given: Any = OrderedDict(weight=1.0)
    given._metadata = OrderedDict({"": {"version": 2}})
    taken: list[Any] = []
    value = Hostile(given, taken.append)
    there_and_back(Plan.of(value), value)
    assert taken == [given]
    assert taken[0]._metadata == given._metadata
    assert type(taken[0]) is type(taken[0]._metadata) is OrderedDict


# -- what does not fit --------------------------------------------------------------------------


async def refused(given: Any, match: str, *, saved: Any = None) -> StateChangedError:
    """Save one state, then open the stream with another, which is refused and loses nothing."""
    saved = {"o": Optimizer(), "n": 1} if saved is None else saved
    store = MemoryStore()
    await train(store, saved, 1, lambda state, batch: None)
    before = await train(store, saved, 1, lambda state, batch: None)
    with pytest.raises(StateChangedError, match=match) as caught:
        await train(store, given, 1, lambda state, batch: None)
    assert await train(store, saved, 1, lambda state, batch: None) == before
    return caught.value


async def test_a_changed_class_is_refused_before_any_object_is_loaded() -> None:
    given = {"p": Optimizer(), "o": Moved()}
    saved = {"p": Optimizer(), "o": Optimizer()}
    match = "an object of the class Optimizer was saved, the program gives a Moved"
    error = await refused(given, match, saved=saved)
    assert error.path == "state.o"
    assert [value.loads for value in given.values()] == [0, 0]


async def test_an_object_that_is_missing_or_new_is_refused_by_its_place() -> None:
    error = await refused(
        {"n": 1}, "of the class Optimizer was saved, the program's state has none"
    )
    assert error.path == "state.o"
    new = {"o": Optimizer(), "e": Optimizer()}
    error = await refused(new, "nothing was saved of this object")
    assert error.path == "state.e"
    assert [value.loads for value in new.values()] == [0, 0]
    error = await refused(Optimizer(), "nothing was saved", saved={"n": 1})
    assert error.path == "state"


@pytest.mark.parametrize(
    ("given", "path", "match"),
    [
        (Optimizer(3), "state.o", r"its load_state_dict\(\) raised ValueError: .*broadcast"),
        (
            Optimizer(4, np.float32),
            "state.o.state[0].momentum",
            r"saved as float64 \(4,\), it is float32 \(4,\) after load_state_dict\(\)",
        ),
    ],
    ids=["another shape", "another dtype"],
)
async def test_an_array_that_does_not_fit_is_refused(given: Any, path: str, match: str) -> None:
    error = await refused({"o": given, "n": 1}, match)
    assert error.path == path


async def test_keys_that_an_object_misses_are_its_own_error() -> None:
    store, key = MemoryStore(), KeyError("betas")
    await train(store, Hostile({}), 1, lambda state, batch: None)
    match = r"at state: its load_state_dict\(\) raised KeyError: 'betas'"
    with pytest.raises(StateChangedError, match=match) as caught:
        await train(store, Hostile({}, takes=key), 1, lambda state, batch: None)
    assert caught.value.__cause__ is key


async def test_a_new_field_of_a_class_takes_the_object_as_it_is() -> None:
    store = MemoryStore()
    old = attrs.make_class("Training", ["optimizer"])
    old.__module__, old.__qualname__ = Training.__module__, Training.__qualname__
    await train(store, old(Optimizer()), 1, lambda state, batch: state.optimizer.step(1))
    given = Training(Optimizer(), Generator())
    given.generator.state = b"new"
    state = await train(store, given, 2, step)
    assert state.generator is given.generator
    assert given.generator.state == b"new."
    assert given.optimizer.steps == 2


# -- what cannot be saved -----------------------------------------------------------------------


async def test_another_object_or_none_fails_the_batch_by_its_place() -> None:
    def replaced(state: Any, batch: Any) -> None:
        state["o"] = Optimizer()

    def removed(state: Any, batch: Any) -> None:
        del state["o"]

    for body, match in (
        (replaced, "is not one that the state had when the stream was opened"),
        (removed, "is not in the state any more: put it back"),
    ):
        with pytest.raises(BatchFailedError, match=match) as caught:
            await train(MemoryStore(), {"o": Optimizer()}, 1, body)
        assert isinstance(caught.value.__cause__, NotEncodableError)
        assert caught.value.__cause__.path == "state.o"


async def test_an_object_is_in_the_state_of_one_open_stream() -> None:
    shared = {"o": Optimizer()}
    async with begin() as run:
        async with run.open_stream("a", state=shared):
            with pytest.raises(ValueError, match=r"state\[0\] is also .*run 'r', stream 'a'"):
                async with run.open_stream("b", state=[shared["o"]]):
                    pass
        async with run.open_stream("b", state=shared):
            pass


async def test_an_object_that_refuses_what_it_gave_ends_the_loop() -> None:
    """The attempt has failed, and cannot be undone: no later one may begin."""
    error = OSError("again")
    retry = RetryTable((RetryRule((OSError,), attempts=2, backoff_s=0),))
    given = Hostile({}, takes=KeyError("betas"))
    seen: list[int] = []

    def fail(state: Any, batch: Any) -> OSError:
        seen.append(batch.attempt)
        return error

    with pytest.raises(StateChangedError, match="KeyError: 'betas'"):
        await train(MemoryStore(), given, 1, fail, retry=retry)
    assert seen == [1]


async def test_an_object_gives_its_state_in_the_thread_of_the_program() -> None:
    threads: set[int] = set()

    class Watched(Generator):
        def get_state(self) -> bytes:
            threads.add(threading.get_ident())
            return self.state

    large = {str(key): key for key in range(THREAD_FROM_BYTES)}
    await train(MemoryStore(), [Watched(), large], 3, lambda state, batch: None)
    assert threads == {threading.get_ident()}


async def test_arrays_of_an_object_are_not_copied_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[str] = []
    copies = ArrayEngine.copies

    def watch(self: ArrayEngine, leaves: Any) -> list[object]:
        copied.extend(leaf.path for leaf in leaves)
        return copies(self, leaves)

    monkeypatch.setattr(ArrayEngine, "copies", watch)
    given: dict[str, Any] = {"o": Optimizer(), "w": np.zeros(3)}
    state = await train(MemoryStore(), given, 1, lambda state, batch: state["o"].step(0))
    assert copied == ["state.w"]
    assert given["o"].momentum[0] == 1.5
    assert state["w"] is not given["w"]


class Mode(enum.Enum):
    ON = 1


@pytest.mark.parametrize(
    ("gives", "path", "match"),
    [
        (OSError("no"), "state.o", r"its state_dict\(\) raised OSError: no"),
        ({"f": print}, "state.o.f", "has no plain value"),
        ({"m": Mode.ON}, "state.o.m", "shows no Mode"),
        ({"inner": Optimizer()}, "state.o.inner", "is not one that the state had"),
    ],
    ids=["it raises", "a function", "an unknown class", "another object"],
)
async def test_what_an_object_gives_must_be_data(gives: Any, path: str, match: str) -> None:
    with pytest.raises(NotEncodableError, match=match) as caught:
        await train(MemoryStore(), {"o": Hostile(gives)}, 1, lambda state, batch: None)
    assert caught.value.path == path


def test_a_damaged_node_loads_nothing() -> None:
    value = Optimizer()
    plan = Plan.of({"o": value})
    node = plan.flatten({"o": value}).tree["o"][Tag.STATEFUL]
    array = [value.momentum]
    damaged: list[Any] = [None, 1, "x", [], node[:3], [*node, 1], {}, b"", [[], *node[1:]]]
    damaged += [[node[0], None, *node[2:]], [node[0], node[1], {Tag.ARRAY: -1}, None]]
    for tree in [{"o": {Tag.STATEFUL: part}} for part in damaged]:
        with pytest.raises(StoreDamagedError):
            plan.build(tree, array)
    with pytest.raises(StoreDamagedError, match="no name of its own"):
        plan.build({"o": {Tag.STATEFUL: node}, "p": {Tag.STATEFUL: node}}, array)
    assert value.loads == 0
    plan.build({"o": {Tag.STATEFUL: node}}, array)
    assert value.loads == 1


def test_declared_classes_and_generators_of_numpy_are_saved_by_value() -> None:
    @attrs.define
    class Both:
        n: int

        def state_dict(self) -> Any:
            raise AssertionError

        load_state_dict = state_dict

    for value in (Both(1), np.random.RandomState(3)):
        plan = Plan.of([value])
        assert not plan.has_objects
        assert there_and_back(plan, [value])[0] is not value
