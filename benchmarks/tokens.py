"""What a token costs: create, complete and read one, and the bytes that it holds.

The control is making one slotted object with as many fields as a token has.  It takes turns with
ours.  The bytes are tracemalloc's over COUNT tokens that are kept; their indexes exist before.
"""

import gc
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import trio

from benchmarks import Found, Options, Section, median
from trio_ckpt import CheckpointCoordinator, CheckpointToken, TokenRegistry
from trio_ckpt._util.threads import Portal

COUNT = 10_000  # indexes, so that most of them are no cached small ints


class Slotted:
    """As many fields as a token has, and nothing else."""

    __slots__ = ("a", "b", "c", "d", "e", "f", "g", "h", "i")

    def __init__(self, a: object, b: object, c: object, d: object) -> None:
        self.a = a
        self.b = b
        self.c = c
        self.d = d
        self.e = None
        self.f = None
        self.g = None
        self.h = None
        self.i = None


class Host:
    """Stands behind a token that is only held."""

    registry = TokenRegistry()

    def complete(self, token: CheckpointToken[Any], result: Any) -> bool:
        """Never called."""
        raise NotImplementedError

    def fail(self, token: CheckpointToken[Any], error: BaseException | str) -> bool:
        """Never called."""
        raise NotImplementedError

    def check_wait(self, token: CheckpointToken[Any]) -> None:
        """Never called."""

    def ended(self, token: CheckpointToken[Any]) -> None:
        """Do nothing: no task watches."""


def make_slotted(indexes: list[int]) -> None:
    """The control."""
    for index in indexes:
        Slotted("run", (), index, None)


def make_tokens(indexes: list[int]) -> None:
    """What a program that saves by itself does for each batch."""
    coordinator = CheckpointCoordinator()
    for index in indexes:
        token = coordinator.create_checkpoint("run", index)
        token.complete(index)
        token.result_nowait()


def ns_each(func: Callable[[list[int]], None], indexes: list[int]) -> float:
    """Nanoseconds per index."""
    started_ns = time.perf_counter_ns()
    func(indexes)
    return (time.perf_counter_ns() - started_ns) / len(indexes)


def bytes_each(make: Callable[[int], object], indexes: list[int]) -> float:
    """Bytes that each of the kept objects holds, the list around them left out."""
    kept: list[object] = [None] * len(indexes)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for at, index in enumerate(indexes):
        kept[at] = make(index)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(indexes)


async def measure_tokens(rounds: int) -> tuple[float, float, float, float, float]:
    """ns of the control and of ours; bytes of the control, of ours, and with the entry."""
    await trio.lowlevel.checkpoint()
    indexes = list(range(COUNT, 2 * COUNT))
    slotted_ns, token_ns = [], []
    for _ in range(rounds):
        slotted_ns.append(ns_each(make_slotted, indexes))
        token_ns.append(ns_each(make_tokens, indexes))
    slotted = bytes_each(lambda index: Slotted("run", (), index, None), indexes)
    host, portal = Host(), Portal.here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # these are dropped unsettled
        bare = bytes_each(lambda index: CheckpointToken("run", (), index, host, portal), indexes)
    async with CheckpointCoordinator() as coordinator:
        with_entry = bytes_each(lambda i: coordinator.create_checkpoint("run", i), indexes)
    return median(slotted_ns), median(token_ns), slotted, bare, with_entry


def measure(options: Options) -> Section:
    """Run it."""
    rounds = 5 if options.is_quick else 25
    slotted_ns, token_ns, slotted, bare, with_entry = trio.run(measure_tokens, rounds)
    ratio = token_ns / slotted_ns
    control_bytes = f"{slotted:,.0f} bytes"
    return Section(
        {
            "slotted_ns": slotted_ns,
            "token_ns": token_ns,
            "ratio": ratio,
            "bytes_slotted": slotted,
            "bytes": bare,
            "bytes_registered": with_entry,
        },
        [
            f"slotted object                  {slotted_ns:8,.0f} ns",
            f"create + complete + read        {token_ns:8,.0f} ns  {ratio:6.2f} x",
            f"bytes, slotted object           {slotted:8,.0f}",
            f"bytes, without registry entry   {bare:8,.0f}",
            f"bytes, with it                  {with_entry:8,.0f}",
        ],
        {
            "create, complete and read a token": Found(ratio, f"{slotted_ns:,.0f} ns"),
            "memory of a token": Found(bare, control_bytes),
            "memory of a token with its registry entry": Found(with_entry, control_bytes),
        },
    )
