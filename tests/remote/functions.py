"""Functions that workers of the tests run."""

from __future__ import annotations

import os
import threading
from os import system as system  # what no client may call by its name here
from typing import Any

import attrs
import numpy as np
import trio
import trio.lowlevel

from trio_ckpt import remote
from trio_ckpt.remote import Work

seen: list[Any] = []  # what ran, for tests in one process
gates: dict[Any, trio.Event] = {}  # what an item waits for
AnyWork = Work[Any]


def reset() -> None:
    """Forget what other tests did."""
    seen.clear()
    gates.clear()


async def square(item: int, _work: AnyWork) -> int:
    seen.append(item)
    await trio.lowlevel.checkpoint()
    return item * item


async def evaluate(item: dict[str, Any], _work: AnyWork) -> dict[str, Any]:
    """Metrics of a bad epoch, and the item, which it changes."""
    seen.append(dict(item))
    item["n"] = "changed"
    await trio.lowlevel.checkpoint()
    return {"loss": float("nan"), "best": np.float32(0.5), "shape": (2, 3), "item": item}


def square_sync(item: int, work: AnyWork) -> int:
    seen.append((item, threading.current_thread() is threading.main_thread()))
    work.report(progress_percent=50)
    return item * item


async def fail_odd(item: int, work: AnyWork) -> int:
    seen.append((item, work.attempt))
    if item % 2:
        raise ValueError(f"{item} is odd")
    return item


async def fail_or_wait(item: str, work: AnyWork) -> str:
    if item == "bad":
        raise ValueError("bad")
    return str(await wait(item, work))


async def fail_once(item: int, work: AnyWork) -> int:
    seen.append((item, work.attempt))
    if work.attempt == 1:
        raise ValueError("the first time")
    return item


async def wait(item: Any, work: AnyWork) -> Any:
    """Wait for the item's gate; say when it is cancelled."""
    seen.append(("begun", item))
    try:
        gate = gates.setdefault(item, trio.Event())
        while not gate.is_set():
            with trio.move_on_after(1):
                await gate.wait()
            await work.point()
    except trio.Cancelled:
        seen.append(("cancelled", item))
        raise
    return item


@attrs.define
class Sums:
    """A state with a type of its own."""

    done: int = 0
    losses: list[float] = attrs.field(factory=list[float])
    weights: Any = attrs.field(factory=lambda: np.zeros(50_000))


def new_sums(item: int) -> Sums:
    return Sums(weights=np.full(50_000, float(item)))


STEPS = 20


@remote.task(state=new_sums)
async def train(item: int, work: Work[Sums]) -> dict[str, Any]:
    """Steps of a second each, a checkpoint at each that is due."""
    seen.append((item, work.state.done, work.resumed_from))
    while work.state.done < STEPS:
        await trio.sleep(1)
        state = work.state
        state.weights[state.done :: 7] *= 1.01
        state.losses.append(float(state.weights.sum()))
        state.done += 1
        seen.append(("step", item, state.done))
        work.report(progress_percent=100 * state.done / STEPS)
        await work.point(f"step {state.done}")
    return {"losses": work.state.losses, "steps": work.state.done}


def trained(item: int) -> dict[str, Any]:
    """What `train` returns, worked out here."""
    state = new_sums(item)
    while state.done < STEPS:
        state.weights[state.done :: 7] *= 1.01
        state.losses.append(float(state.weights.sum()))
        state.done += 1
    return {"losses": state.losses, "steps": state.done}


async def unencodable(item: int, work: AnyWork) -> int:
    """A state that cannot be saved at its second point, and can again at its third."""
    for step in range(4):
        await trio.sleep(5)
        work.state["step"] = step
        work.state["hook"] = (lambda: None) if step == 1 else None
        seen.append(await work.point())
    return item


async def returns_nonsense(_item: int, _work: AnyWork) -> Any:
    return lambda: None


def _private(item: int, _work: AnyWork) -> int:
    return item


not_a_function = 5


async def echo(item: Any, _work: AnyWork) -> Any:
    return item


@remote.task(state=new_sums)
async def train_fast(item: int, work: Work[Sums]) -> dict[str, Any]:
    """As `train`, without the seconds."""
    while work.state.done < STEPS:
        state = work.state
        state.weights[state.done :: 7] *= 1.01
        state.losses.append(float(state.weights.sum()))
        state.done += 1
        await work.point()
    return {"losses": work.state.losses, "steps": work.state.done}


def large_array() -> Any:
    return np.random.default_rng(3).random(2**19)


async def large(_item: int, work: AnyWork) -> float:
    """An array of 4 MiB, saved; then it waits."""
    if "array" not in work.state:
        work.state["array"] = large_array()
        while not await work.point():  # noqa: ASYNC110  # it is a save that is waited for
            await trio.sleep(0.01)
        gate = gates["large"] = trio.Event()
        await gate.wait()
    return float(work.state["array"].sum())


async def mixed(_item: int, work: AnyWork) -> list[Any]:
    state = work.state
    state.setdefault("nested", {"seen": set(), "array": np.zeros(3)})
    while state.setdefault("n", 0) < 6:
        await trio.sleep(1.5)
        state["n"] += 1
        state["nested"]["seen"].add(state["n"])
        await work.point()
    nested = state["nested"]
    kinds = [type(value).__name__ for value in (nested, nested["array"], nested["seen"])]
    return [*kinds, len(nested["seen"])]


async def eager(item: int, work: AnyWork) -> int:
    for step in range(100):
        work.state["step"] = step
        await trio.sleep(0.1)
        await work.point()
    return item


async def tell_trace(_item: int, work: AnyWork) -> dict[str, str]:
    return work.trace


@remote.task(state=new_sums)
async def train_slowly(item: int, work: Work[Sums]) -> dict[str, Any]:
    """As `train`, a step in a tenth of a second."""
    seen.append(("begun", item, work.state.done))
    try:
        await _train_to_end(item, work)
    finally:
        seen.append(("ended", item))
    return {"losses": work.state.losses, "steps": work.state.done}


async def _train_to_end(item: int, work: Work[Sums]) -> None:
    while work.state.done < STEPS:
        state = work.state
        state.weights[state.done :: 7] *= 1.01
        state.losses.append(float(state.weights.sum()))
        state.done += 1
        seen.append(("step", item, state.done))
        await work.point()
        await trio.sleep(0.1)


@remote.task(in_process=True)
def in_process(item: int) -> list[int]:
    return [item, os.getpid()]


SHORT_STEPS = 3


@remote.task(state=lambda _item: {"done": 0, "sum": 0})
async def short(item: int, work: AnyWork) -> int:
    """A few steps of half a second, or so many as `item` says where that is more."""
    state = work.state
    while state["done"] < max(SHORT_STEPS, item):
        await trio.sleep(0.5)
        state["done"] += 1
        state["sum"] += state["done"] * (item + 1)
        work.report(progress_percent=float(state["done"]))
        await work.point(str(state["done"]))
    return int(state["sum"])


def short_sum(item: int) -> int:
    """What `short` returns, worked out here."""
    steps = max(SHORT_STEPS, item)
    return (item + 1) * steps * (steps + 1) // 2


async def fail_first_try(item: int, work: AnyWork) -> int:
    """Fails at its first try, which is one in all, however often the foreman is killed."""
    await trio.sleep(0.5)
    seen.append(("try", item, work.attempt))
    if work.attempt == 1:
        raise ValueError(f"{item} fails at first")
    return item


@remote.task(state=lambda _item: {"done": 0, "sum": 0})
async def stubborn(item: int, work: AnyWork) -> int:
    """Works for a while after it was cancelled, as a thread would; even items end well then."""
    try:
        await short(item, work)
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            for percent in (90.0, 95.0):
                work.report(progress_percent=percent)
                await trio.sleep(0.7)
        if item % 2:
            raise ValueError("it is odd") from None
    return item


async def nap(item: int, _work: AnyWork) -> int:
    """Says nothing for so long that heartbeats are needed."""
    await trio.sleep(7)
    return item


@remote.task(state=lambda _item: {"done": 0, "sum": 0})
async def uneven(item: int, work: AnyWork) -> int:
    """As `short`, at a pace of its own, and with a larger state."""
    await trio.sleep(item % 10 * 0.11)
    work.state["large"] = bytes(300_000)
    return await short(item, work)


async def half(item: Any, work: AnyWork) -> Any:
    """Report that half is done, then wait."""
    work.report(progress_percent=50)
    return await wait(item, work)


async def fail_at_length(item: str, _work: AnyWork) -> None:
    raise ValueError(item * 30_000 + "\n" + item * 30_000)


async def fail_odd_first_try(item: int, work: AnyWork) -> int:
    return await fail_first_try(item, work) if item % 2 else await echo_try(item, work)


async def echo_try(item: int, work: AnyWork) -> int:
    seen.append(("try", item, work.attempt))
    await trio.lowlevel.checkpoint()
    return item
