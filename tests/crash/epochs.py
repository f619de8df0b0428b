"""A training that is killed inside its epochs, by itself, at a place that its plan names.

Its loaders fetch ahead in threads, or in processes that are forked inside the run, as the workers
of a loader of torch are; its ranks are simulated: each has an order and a loader of its own, and
the gradients are summed by rank.  ``python -m tests.crash.epochs`` forks a child for each session
that a test asks for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import trio

from tests.fork_server import serve
from trio_ckpt import open_run
from trio_ckpt.state import Order

SAMPLES, SIZE, EPOCHS = 241, 8, 3
LIMIT_S = 120.0  # a session takes a fifth of a second; more is a hang
BROKEN = 99  # the exit code of a child that could not carry out its plan
WORKER_LOST = 98  # the exit code of one whose loader has lost a worker
PLACES = ("fetch", "step", "save")
STOP = "stop"  # the file that ends workers whose owner was killed
LOOK_S = 0.05

Floats = npt.NDArray[np.float64]

_pipe_of_server = -1


@attrs.frozen
class Session:
    """One session of the training.

    Attributes:
        root: Where the store is.
        workers: How many threads or processes fetch for each rank; 0: the loop fetches itself.
        ranks: How many ranks train.
        epoch: The epoch in which it dies; -1: it does not.
        place: Where it dies, of `PLACES`.
        count: The how manieth time.
        delay_s: How long after that, if it dies while a save is under way; in seconds.
        dies: What dies: ``"all"``, that is the process and its workers, only the ``"owner"`` of the
            run, or only the ``"worker"`` that fetches.
        has_processes: Whether the workers are processes.
    """

    root: str
    workers: int
    ranks: int
    epoch: int = -1
    place: str = "step"
    count: int = 1
    delay_s: float = 0.0
    dies: str = "all"
    has_processes: bool = False


@attrs.define
class State:
    """What the next step depends on, and which samples it has seen."""

    order: Order = attrs.field(factory=lambda: Order(SAMPLES, 5))
    weights: Floats = attrs.field(factory=lambda: np.zeros(500))
    seen: npt.NDArray[np.int64] = attrs.field(factory=lambda: np.zeros((EPOCHS, SAMPLES), np.int64))


@attrs.define(eq=False)
class Death:
    """Kills what the plan says at the place that it names."""

    plan: Session
    owner: int = attrs.field(factory=os.getpid)
    met: int = 0
    is_due: bool = False

    def pass_(self, place: str, epoch: int) -> None:
        if self.is_due:
            threading.Event().wait(LIMIT_S)  # it dies in the save that is under way, or right here
        if (place, epoch) == (self.plan.place, self.plan.epoch):
            self.met += 1
            if self.met == self.plan.count:
                if self.plan.delay_s:
                    self.is_due = True
                    threading.Timer(self.plan.delay_s, self.kill).start()
                else:
                    self.kill()

    def kill(self) -> None:
        if self.plan.dies == "all":
            os.killpg(self.owner, signal.SIGKILL)
        else:
            os.kill(self.owner if self.plan.dies == "owner" else os.getpid(), signal.SIGKILL)


def load(
    batches: Iterable[list[int]], fetch: Callable[[list[int]], Floats], workers: int
) -> Iterator[tuple[list[int], Floats]]:
    """Yield batches with their data; threads fetch two each ahead of the loop."""
    if not workers:
        yield from ((batch, fetch(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[list[int], Future[Floats]]] = deque()
        for batch in batches:
            ahead.append((batch, pool.submit(fetch, batch)))
            if len(ahead) > 2 * workers:
                found, future = ahead.popleft()
                yield found, future.result()
        for found, future in ahead:
            yield found, future.result()


def load_in_processes(
    batches: Iterable[list[int]], fetch: Callable[[list[int]], Floats], workers: int, plan: Session
) -> Iterator[tuple[list[int], Floats]]:
    """Yield batches with their data; processes fetch two each ahead of the loop."""
    started = [start_worker(fetch, plan) for _ in range(workers)]
    try:
        ahead = deque[tuple[list[int], Connection]]()
        for batch, (_, connection) in zip(batches, itertools.cycle(started), strict=False):
            connection.send(batch)
            ahead.append((batch, connection))
            if len(ahead) > 2 * workers:
                found, connection = ahead.popleft()
                yield found, connection.recv()
        for found, connection in ahead:
            yield found, connection.recv()
    finally:
        for process, connection in started:
            process.kill()
            process.join()
            connection.close()


def start_worker(
    fetch: Callable[[list[int]], Floats], plan: Session
) -> tuple[ForkProcess, Connection]:
    """Fork a worker; returns it, with the end of the pipe that is the owner's."""
    context = multiprocessing.get_context("fork")
    own, others = context.Pipe()
    process = context.Process(target=work, args=(others, fetch, Path(plan.root) / STOP))
    process.start()
    others.close()
    return process, own


def work(connection: Connection, fetch: Callable[[list[int]], Floats], stop: Path) -> None:
    """Fetch what the owner asks for; one whose owner is gone stays until it is stopped."""
    os.close(_pipe_of_server)  # the server waits until all copies are closed
    with suppress(EOFError, OSError):
        while not stop.exists():
            if connection.poll(LOOK_S):  # its end may be open in other workers, so it has no end
                connection.send(fetch(connection.recv()))
    while not stop.exists():
        time.sleep(LOOK_S)


def take_step(state: State, parts: list[tuple[list[int], Floats]]) -> None:
    """Change all weights by the sum over the ranks; another sum has other bits."""
    total = np.zeros_like(state.weights)
    for found, data in parts:
        state.seen[state.order.epoch][found] += 1
        total += np.sin(data.sum() + state.weights)
    state.weights += total / 7
    state.order.advance(SIZE)


async def train(plan: Session) -> State:
    """Train what is left, or die."""
    death, data = Death(plan), np.random.default_rng(2).normal(size=(SAMPLES, 3))
    store = Path(plan.root) / "store.ckpt"
    async with (
        open_run("r", store=store, handle_signals=False) as run,
        run.open_stream("train", state=State()) as stream,
    ):
        async for batch in stream.batches(range(EPOCHS)):
            state = stream.state
            if batch.resumed_from is None:
                state.order.begin_epoch(batch.index)

            def fetch(found: list[int], epoch: int = batch.index) -> Floats:
                death.pass_("fetch", epoch)
                return np.asarray(data[found])

            loaders: list[Iterator[tuple[list[int], Floats]]] = []
            for rank in range(plan.ranks):
                own = Order(SAMPLES, 5)
                own.load_state_dict(state.order.state_dict())  # as rank 0 would send it
                shares = own.ahead(SIZE, rank=rank, ranks=plan.ranks)
                loaders.append(
                    load_in_processes(shares, fetch, plan.workers, plan)
                    if plan.has_processes
                    else load(shares, fetch, plan.workers)
                )
            async with stream.snapshots(every_s=0) as snapshot:
                for parts in zip(*loaders, strict=True):
                    take_step(state, list(parts))
                    death.pass_("step", batch.index)
                    await snapshot.point(f"sample {state.order.position}")
                    death.pass_("save", batch.index)
                    await snapshot.wait()  # so that it is known how far a session comes
            batch.complete()
        return stream.state


def _carry_out(request: dict[str, Any], pipe: int) -> int:
    global _pipe_of_server
    _pipe_of_server = pipe
    os.setpgid(0, 0)
    try:
        state = trio.run(train, Session(**request))
    except (EOFError, ConnectionError):
        return WORKER_LOST
    except BaseException:
        traceback.print_exc()
        return BROKEN
    digest = hashlib.sha256(state.weights.tobytes()).hexdigest()
    seen = sorted(set(state.seen.ravel().tolist()))
    os.write(pipe, json.dumps(["ended", digest, seen]).encode() + b"\n")
    return 0


if __name__ == "__main__":
    serve(_carry_out, LIMIT_S)
