"""Whatever a state is made of, however it changes, wherever the program dies: it comes back.

Random states of nested values and arrays of all kinds, which share memory with each other, go
through random changes.  Before and after everything that the store is asked for, what a kill at
that moment would leave behind is kept, and restored later: it is, bit for bit, the newest state
that was acknowledged, or one that was on its way.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import pytest
import trio

from tests.opening import begin
from tests.state.arrays.test_capture import open_simulated
from tests.watched import WatchedStore
from trio_ckpt._journal.history import read_pages
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.abc import BlobPayload, Checkpoint, Fold, RunKey
from trio_ckpt.state import empty
from trio_ckpt.state._arrays import engine
from trio_ckpt.state._arrays.dirty_pages import Untracked
from trio_ckpt.state._chain import read_chain, read_named
from trio_ckpt.stores import MemoryStore

DTYPES = [
    *(
        "<f4",
        ">f8",
        "<f2",
        "|i1",
        "<u2",
        "<i8",
        "|b1",
        "<c8",
        "<c16",
        "|S3",
        "<U2",
        "<M8[s]",
        "|V5",
    ),
    np.dtype([("a", "<i2"), ("b", "<f8", (2,))]),
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
]
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (4, 5), (2, 3, 4), (700, 40), (90, 1024)]
FLOATS = [0.0, -0.0, 1.5, float("inf"), struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\xff")[0]]


def fill(rng: random.Random, array: Any) -> None:
    """Random bits, NaNs of all kinds among them; only what a dtype has."""
    nbytes = array.size * array.dtype.itemsize
    if array.dtype.kind == "b":
        data = np.frombuffer(rng.randbytes(nbytes), np.uint8) & 1
    elif array.dtype.kind == "U":
        data = np.array([rng.randrange(0x20, 0xD000) for _ in range(nbytes // 4)], "<u4")
    else:
        data = np.frombuffer(rng.randbytes(nbytes), np.uint8)
    array[...] = np.frombuffer(data.tobytes(), array.dtype).reshape(array.shape)


def make_array(rng: random.Random, others: Sequence[Any]) -> Any:
    """A new one, in any order, or a view of another one."""
    views = [one for one in others if one.ndim and one.size]
    if views and rng.random() < 0.3:
        one = rng.choice(views)
        steps = tuple(slice(None, None, rng.choice([1, 2, -1])) for _ in one.shape)
        return rng.choice([one, one.T, one[steps], one[: one.shape[0] // 2]])
    shape, dtype = rng.choice(SHAPES), np.dtype(rng.choice(DTYPES))
    make = rng.choice([empty, np.empty])
    array = make(shape, dtype)
    if array.ndim > 1 and rng.random() < 0.3:
        array = np.asfortranarray(array)
    fill(rng, array)
    return array


def make_value(rng: random.Random, arrays: list[Any], depth: int = 0) -> Any:
    kind = rng.randrange(11 if depth < 3 else 7)
    if kind < 3:
        arrays.append(make_array(rng, arrays))
        return arrays[-1]
    if kind == 3:
        return rng.choice([None, True, rng.randrange(-(10**30), 10**30), "ü\0", b"\xff"])
    if kind < 6:
        return rng.choice(FLOATS)
    if kind == 6:
        return {rng.randrange(100) for _ in range(3)}
    many = [make_value(rng, arrays, depth + 1) for _ in range(rng.randrange(4))]
    return {7: many, 8: tuple(many), 9: many}.get(kind) or {
        rng.choice(["k", 3, (1, "x")]): one for one in many
    }


def change(rng: random.Random, state: dict[str, Any]) -> None:
    """Some of it in place, some of it replaced."""
    arrays: list[Any] = []
    describe(state, arrays)
    for array in rng.sample(arrays, min(len(arrays), rng.randrange(4))):
        part = array[rng.randrange(len(array)) :][:1] if array.ndim and len(array) else array
        fill(rng, part if rng.random() < 0.7 else array)
    state["log"].append(rng.choice(FLOATS))
    if rng.random() < 0.4:
        state[rng.choice("abc")] = make_value(rng, arrays)
    if rng.random() < 0.2:
        state.pop(rng.choice("abc"), None)


def describe(value: Any, arrays: list[Any]) -> Any:
    """Return what distinguishes two values, bit for bit; collects the arrays, each once."""
    if isinstance(value, np.ndarray):
        known = [number for number, one in enumerate(arrays) if one is value]
        if not known:
            arrays.append(value)
        return ("array", known or len(arrays), repr(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, dict):
        return ("dict", [(repr(key), describe(one, arrays)) for key, one in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [describe(one, arrays) for one in value])
    if isinstance(value, set):
        return ("set", sorted(value))
    return (type(value).__name__, repr(value))


def facts(state: Any) -> Any:
    """Return what distinguishes two states, and which of their arrays share memory."""
    arrays: list[Any] = []
    found = describe(state, arrays)
    pairs = itertools.combinations(range(len(arrays)), 2)
    return found, [(a, b) for a, b in pairs if np.shares_memory(arrays[a], arrays[b])]


@attrs.define(eq=False)
class Acknowledged:
    """What was acknowledged to a program, and what it has captured."""

    captured: list[Any] = attrs.field(factory=list[Any])
    acknowledged: int = 0  # how many of these the store has for certain


class Dying(WatchedStore):
    """Keeps what a kill would leave behind, before and after all that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Acknowledged()
        self.left: list[tuple[MemoryStore, int, int]] = []

    def look(self) -> None:
        told = self.told
        self.left.append((self.after_crash(), told.acknowledged, len(told.captured)))

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self.look()

    async def after_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        self.look()

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        self.look()
        return await super().put_blob(run, payload)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        dropped = await super().drop_blobs(run, stream, sequences)
        self.look()
        return dropped


def new_state(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    arrays: list[Any] = []
    state = {name: make_value(rng, arrays) for name in "abc"}
    large = empty((100, 1024), np.float32)  # more than goes into a record
    fill(rng, large)
    return {**state, "large": large, "view": large[::3, 5], "log": []}


async def work(store: Dying, seed: int) -> None:
    """Five batches, some with snapshots; each state is noted where it is captured."""
    rng, told = random.Random(seed), store.told
    async with begin(store) as run, run.open_stream("s", state=new_state(seed)) as stream:
        told.captured.append(facts(stream.state))
        async for batch in stream.batches(range(5)):
            if rng.random() < 0.5:
                async with stream.snapshots(every_s=0.0) as snapshots:
                    for _ in range(3):
                        change(rng, stream.state)
                        told.captured.append(facts(stream.state))
                        if await snapshots.point():
                            taken = len(told.captured)
                            change(rng, stream.state)  # while it is on its way
                            await snapshots.wait()
                            told.acknowledged = taken
            change(rng, stream.state)
            told.captured.append(facts(stream.state))
            batch.complete()
            await batch.confirm()
            told.acknowledged = len(told.captured)


async def restored(store: MemoryStore, seed: int) -> Any:
    async with begin(store) as run, run.open_stream("s", state=new_state(seed)) as stream:
        return facts(stream.state)


METHODS: dict[str, Callable[[], Any] | None] = {
    "as it is here": None,
    "simulated pages": open_simulated,
    "hashes": lambda: Untracked("the test wants it so"),
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("method", METHODS)
async def test_what_comes_back_is_what_was_acknowledged(
    method: str, seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    if opener := METHODS[method]:
        monkeypatch.setattr(engine, "open_tracker", opener)
    store = Dying()
    await work(store, seed)
    captured = store.told.captured
    assert len(store.left) > 12
    for left, acknowledged, on_its_way in store.left[:: 1 + seed % 3]:
        found = await restored(left, seed)
        allowed = captured[max(acknowledged - 1, 0) : on_its_way + 1]
        assert found in allowed, f"{acknowledged} of {on_its_way} were acknowledged"


async def test_no_state_of_a_program_that_goes_on_is_torn() -> None:
    """2,000 saves of an array that changes as soon as it may, while they are on their way.

    It holds its own sum, so that each that was saved can be looked at by itself.
    """
    store, sums, changes = MemoryStore(), set[int](), 0
    state = {"a": np.zeros(40_000, np.int64)}  # more than goes into a record
    async with begin(store) as run, run.open_stream("s", state=state) as stream:
        array = stream.state["a"]
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=0.0) as snapshots:
                for number in range(2_000):
                    array[1 + number * 7 % 39_999] += 1
                    array[0] = array[1:].sum()
                    assert await snapshots.point()
                    while loop_cursor_of(stream).open_stream.state_manager.is_saving:  # type: ignore[union-attr]
                        changes += 1
                        array[1 + changes * 997 % 39_999] += 1
                        array[0] = array[1:].sum()
                        await trio.lowlevel.checkpoint()
                    found = await newest(store)
                    assert found[0] == found[1:].sum()
                    sums.add(int(found[0]))
            batch.complete()
    assert len(sums) == 2_000
    assert changes > 2_000


async def newest(store: MemoryStore) -> Any:
    """The array of the newest snapshot."""
    chain, _ = await read_chain(read_pages(store, "r", 0, ("s",)))
    return (await read_named(store, "r", [frame for _, frame in chain], None))["state.a"]
