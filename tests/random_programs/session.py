"""One session of a random program, and one command: what the child process does.

What it begins, what it knows to be durable and what it asks for, it tells over a pipe at once, so
that a kill loses none of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

import trio_ckpt
from trio_ckpt import (
    Batch,
    Frontier,
    RetryRule,
    RetryTable,
    Run,
    Stream,
    Then,
    open_maintenance,
    open_run,
    run_batches,
)
from trio_ckpt._maintenance.repair import repair_all
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt.abc import HistoryPage, Store
from trio_ckpt.stores import open_store
from trio_ckpt.testing import CommitThenError, Fail, FaultyStore

RUN = "run"
STORE, OUT = "store", "out"
FAULTS = {"fail": Fail(), "commit, then error": CommitThenError()}
RETRIES = RetryTable([RetryRule([OSError], attempts=3, backoff_s=0.0, then=Then.SKIP)])
Tell = Callable[..., None]


class BoomError(Exception):
    """The program has an error."""


@attrs.frozen
class StreamPlan:
    """A stream, and what happens to it in one session.

    Attributes:
        key: Its key.
        kind: How it is worked: a key of `WAYS`.
        count: How many items there are.
        width: Of `run_batches`.
        rewind: Before it is opened: to this share of its batches; None: not at all.
        redo: Shares of its batches that are put back.
        redo_at: Before the batch that is handed out as this number; 0: before the loop.
    """

    key: tuple[str, ...]
    kind: str
    count: int
    width: int = 1
    rewind: float | None = None
    redo: tuple[float, ...] = ()
    redo_at: int = 0


@attrs.frozen
class SessionPlan:
    """One start of the program.

    Attributes:
        name: Which it is, in what batches say of themselves; different for each session.
        store: The kind.
        page: How many records the store gives at a time.
        streams: What is worked on, side by side.
        trouble: How likely a batch is to fail or to be skipped.
        end: How it is ended from outside, and after how many steps of its tasks.
        faults: Of saves, by their number.
        settings: Of `open_run`.
    """

    name: str
    store: str
    page: int
    streams: tuple[StreamPlan, ...]
    trouble: float = 0.0
    end: tuple[str, int] = ("", 0)
    faults: dict[int, str] = attrs.field(factory=dict[int, str])
    settings: dict[str, Any] = attrs.field(factory=dict[str, Any])


@attrs.frozen
class CommandPlan:
    """One command on the run while no session has it.

    Attributes:
        what: ``retry``, ``redo``, ``rewind``, ``compact``, ``reset`` or ``repair``.
        key: Of the stream, where there is one.
        indexes: To redo.
        to: To rewind to.
        reason: Names it in the history.
        store, page, end: As for a session.
    """

    what: str
    store: str
    page: int
    key: tuple[str, ...] = ()
    indexes: tuple[int, ...] = ()
    to: int = 0
    reason: str = ""
    end: tuple[str, int] = ("", 0)


# ---------------------------------------------------------------------------------------
# Around the program
# ---------------------------------------------------------------------------------------


class SmallPages(FaultyStore):
    """Gives few records at a time, the older ones late."""

    def __init__(self, store: Store, page: int, faults: dict[int, str], rng: random.Random) -> None:
        super().__init__(store, {number: FAULTS[name] for number, name in faults.items()})
        self._page, self._rng = page, rng

    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        if cursor is not None:
            await trio.sleep(self._rng.choice([0, 0, 0, 0.002, 0.02]))
        limit = min(limit, self._page)
        return await super().history(
            run_id, stream, generation=generation, cursor=cursor, limit=limit
        )


class After(trio.abc.Instrument):
    """Does something after so many steps of tasks."""

    def __init__(self, steps: int, act: Callable[[], None]) -> None:
        self._left, self._act = steps, act

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@attrs.define(eq=False)
class Program:
    """What the streams of a session share."""

    plan: SessionPlan
    tell: Tell
    is_broken: bool = False  # the next batch raises
    attempts: int = 0

    def attempt(self, key: Sequence[str], batch: Batch[Any]) -> str:
        """The name of an attempt at a batch: no other ever has it."""
        self.attempts += 1
        return f"{self.plan.name}.{'/'.join(key)}.{batch.index}.{self.attempts}"

    def rng(self, *about: object) -> random.Random:
        return random.Random(f"{self.plan.name} {about}")


async def run_session(plan: SessionPlan, root: Path, tell: Tell) -> None:
    """Run the program until it ends, whichever way."""
    program = Program(plan, tell)
    how, steps = plan.end
    scope = trio.CancelScope()

    def break_it() -> None:
        program.is_broken = True

    acts = {"kill": kill, "cancel": scope.cancel, "boom": break_it}
    acts["stop"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    if how:
        trio.lowlevel.add_instrument(After(steps, acts[how]))
    async with AsyncExitStack() as stack:
        store = await open_store(f"{plan.store}:{root / STORE}")
        stack.push_async_callback(store.aclose)
        paged = SmallPages(store, plan.page, plan.faults, program.rng("pages"))
        with scope:
            async with open_run(RUN, store=paged, output_dir=root / OUT, **plan.settings) as run:
                async with trio.open_nursery() as nursery:
                    for stream in plan.streams:
                        nursery.start_soon(work, program, run, stream)
                tell("worked", run.exit_code)


async def work(program: Program, run: Run, plan: StreamPlan) -> None:
    """What a session does to one stream."""
    key, tell = plan.key, program.tell
    if plan.rewind is not None and key in run.view().streams:
        done = sorted(run.view().streams[key].progress.done)
        to = int(plan.rewind * (len(done) + 2)) - 1
        reason = f"{program.plan.name} rewinds"
        tell("puts back", key, reason)
        await run.rewind(key, to=to, reason=reason)
    await WAYS[plan.kind](program, run, plan)


async def put_back(program: Program, stream: Stream[Any], shares: Sequence[float]) -> None:
    """Re-queue some of what is done."""
    progress = stream.progress
    done = sorted({*progress.confirmed, *progress.skipped})
    if done and shares:
        reason = f"{program.plan.name} does it again"
        program.tell("puts back", stream.key, reason)
        await stream.redo({done[int(share * len(done))] for share in shares}, reason=reason)


# ---------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------


async def produce(
    program: Program, batch: Batch[Any], key: Sequence[str], name: str = "", **more: Any
) -> str:
    """One attempt at a batch: files that say what it produces; returns its name.

    How much it produces is drawn again for every attempt, so that amounts of one that is taken
    back are not those of the next.
    """
    name = name or program.attempt(key, batch)
    program.tell("begins", key, batch.index, name)
    if program.is_broken:
        raise BoomError
    rng = program.rng(name)
    if rng.random() < program.plan.trouble:
        if rng.random() < 0.3:
            batch.skip(f"{name} is skipped")
            return ""
        batch.spend(tries=1, cost=0.1)
        raise OSError(f"{name} fails")
    says = {
        "name": name,
        "records": rng.randrange(4),
        "totals": {"words": rng.randrange(100) / 10, "pages": rng.randrange(3)},
    }
    for part in range(rng.randrange(3)):
        await batch.write_json(f"{'-'.join(key)}/{batch.index}-{part}.json", {**says, "part": part})
        if rng.random() < 0.2:
            await trio.lowlevel.checkpoint()
    batch.spend(tries=1, cost=rng.randrange(100) / 10)
    batch.complete(records=says["records"], totals=says["totals"], metadata={"name": name}, **more)
    return name


async def in_order(
    program: Program, stream: Stream[Any], plan: StreamPlan, step: Callable[[Batch[Any]], Any]
) -> None:
    """The loop of a stream that goes through its items one by one."""
    before, number = "", 0
    if plan.redo_at == 0:
        await put_back(program, stream, plan.redo)
    async for batch in stream.batches(range(plan.count)):
        if before:
            program.tell("is durable", plan.key, before)
        before, number = "", number + 1
        if number == plan.redo_at:
            batch.complete(metadata={"name": f"{program.plan.name} {plan.key} on the way"})
            await put_back(program, stream, plan.redo)
            continue
        try:
            before = await step(batch)
        except OSError as error:
            batch.fail(error)
    if before:
        program.tell("is durable", plan.key, before)


def ended(program: Program, stream: Stream[Any]) -> None:
    """What a stream says of itself at its end."""
    progress = stream.progress
    program.tell(
        "ends with",
        stream.key,
        {
            "confirmed": sorted(progress.confirmed),
            "skipped": sorted(progress.skipped),
            "records": progress.records,
            "status": stream.status.value,
        },
    )


async def plain(program: Program, run: Run, plan: StreamPlan) -> None:
    """Batches that stand alone, one at a time."""
    async with run.open_stream(*plan.key, retry=RETRIES) as stream:
        await in_order(program, stream, plan, lambda batch: produce(program, batch, plan.key))
    ended(program, stream)


async def pool(program: Program, run: Run, plan: StreamPlan) -> None:
    """Batches that stand alone, several at a time; some wait until they are durable."""

    async def handle(batch: Batch[Any]) -> None:
        name = await produce(program, batch, plan.key)
        if name and batch.index % 2:
            await batch.confirm()
            program.tell("is durable", plan.key, name)

    async with run.open_stream(*plan.key, retry=RETRIES) as stream:
        await put_back(program, stream, plan.redo)
        await run_batches(stream, range(plan.count), handle, concurrency=plan.width)
    ended(program, stream)


async def lines(program: Program, run: Run, plan: StreamPlan) -> None:
    """Batches that append lines, in order, and leave a cursor."""
    async with run.open_stream(*plan.key, retry=RETRIES) as stream:

        async def step(batch: Batch[Any]) -> str:
            name = program.attempt(plan.key, batch)
            for part in range(batch.index % 3):
                batch.append_json(f"{'-'.join(plan.key)}-{part}.jsonl", {"name": name})
            cursor = {"after": batch.index}
            return await produce(program, batch, plan.key, name, cursor=cursor)

        await in_order(program, stream, attrs.evolve(plan, redo=(), redo_at=-1), step)
    ended(program, stream)


async def stateful(program: Program, run: Run, plan: StreamPlan) -> None:
    """Batches that build on a state, which they also write down."""
    async with run.open_stream(*plan.key, state={"names": []}, retry=RETRIES) as stream:

        async def step(batch: Batch[Any]) -> str:
            name = program.attempt(plan.key, batch)
            stream.state["names"].append(name)
            await batch.write_json(f"{'-'.join(plan.key)}-{batch.index}.json", stream.state)
            return await produce(program, batch, plan.key, name)

        await in_order(program, stream, attrs.evolve(plan, redo=(), redo_at=-1), step)
    ended(program, stream)


async def growing(program: Program, run: Run, plan: StreamPlan) -> None:
    """Items that are found while others are worked on; there are always the same."""

    async def handle(batch: Batch[Any]) -> None:
        found = [f"{batch.item}{n}" for n in range(3) if len(batch.item) < 3]
        batch.add(found[: plan.count])
        await produce(program, batch, plan.key)

    async with run.open_stream(*plan.key, state=Frontier(["i"]), retry=RETRIES) as stream:
        await run_batches(stream, None, handle, concurrency=plan.width)
    ended(program, stream)


async def open_ended(program: Program, run: Run, plan: StreamPlan) -> None:
    """Pages until one is empty, or says that it is the last."""
    is_told = len(plan.key[0]) % 2 == 0
    async with run.open_stream(*plan.key, retry=RETRIES) as stream:
        await put_back(program, stream, plan.redo)
        async for batch in stream.batches():
            if batch.index >= plan.count:
                batch.withdraw()
                break
            is_last = is_told and batch.index == plan.count - 1
            try:
                await produce(program, batch, plan.key, last=is_last)
            except OSError as error:
                batch.fail(error)
    ended(program, stream)


WAYS: dict[str, Callable[[Program, Run, StreamPlan], Any]] = {
    "plain": plain,
    "pool": pool,
    "lines": lines,
    "stateful": stateful,
    "growing": growing,
    "open-ended": open_ended,
}
ORDERED = ("lines", "stateful")


# ---------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------


async def run_command(plan: CommandPlan, root: Path, tell: Tell) -> None:
    """What ``trio-ckpt`` does to a run that is not open."""
    how, steps = plan.end
    if how == "kill":
        trio.lowlevel.add_instrument(After(steps, kill))
    url = f"{plan.store}:{root / STORE}"
    async with AsyncExitStack() as stack:
        store = await open_store(url)
        stack.push_async_callback(store.aclose)
        if plan.what == "repair":
            found = [finding async for finding in check_all(store)]
            report = await repair_all(url, found)
            tell(
                "repaired",
                [msgspec.structs.asdict(part) for part in (*report.done, *report.not_done)],
            )
            return
        paged = SmallPages(store, plan.page, {}, random.Random(plan.reason))
        async with open_maintenance(paged, RUN) as maintenance:
            if plan.what == "retry":
                await maintenance.retry()
            elif plan.what == "redo":
                await maintenance.redo(plan.key, plan.indexes, plan.reason)
            elif plan.what == "rewind":
                await maintenance.rewind(plan.key, to=plan.to, reason=plan.reason)
            elif plan.what == "compact":
                await maintenance.compact()
            else:
                await maintenance.reset(plan.reason)


def carry_out(plan: SessionPlan | CommandPlan, root: Path, pipe: int) -> int:
    """Do it, in this process; returns its exit code."""

    def tell(*words: Any) -> None:
        os.write(pipe, json.dumps(words).encode() + b"\n")

    try:
        if isinstance(plan, SessionPlan):
            trio.run(run_session, plan, root, tell)
        else:
            trio.run(run_command, plan, root, tell)
    except trio_ckpt.RunStoppedError as error:
        return error.exit_code
    except BaseException as error:
        tell("raised", *_leaves(error))
        return 1
    return 0


def _leaves(error: BaseException) -> list[tuple[str, str, bool]]:
    """Type, text, and whether it is an error that a program may meet."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    is_known = isinstance(error, trio_ckpt.TrioCkptError | BoomError | trio.Cancelled | OSError)
    return [(type(error).__name__, str(error), is_known)]
