"""Calls of a function over items in an engine that the caller chooses, results as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, TypeAlias, cast

import attrs
import trio

from .._journal.store import Store
from .._util.arguments import instance, mapping, shown, text, whole_number
from .._util.exceptions import text_of
from .._util.log import get_logger
from .._util.nursery import open_service_nursery
from .._util.patience import give_up_after
from .._util.plain import Plain
from .._util.text import one_line
from .._util.threads import run_blocking
from ..remote import TaskFailedError
from ..remote._foreman.job import check_work_left
from ..remote._wire.message import MAX_SLOTS
from ..remote._wire.submission import JobSubmission
from ._dask import DaskAdapter, DaskClient, is_dask_client, open_dask
from ._engine import EngineAdapter, EngineCalls, Resources
from ._executors import ExecutorAdapter, made
from ._job import JobDriver
from ._ray import open_ray
from ._store_host import close_host

log = get_logger(__name__)

Engine: TypeAlias = Literal["local", "dask", "ray"] | DaskClient | Executor | Callable[[], Executor]
"""What runs work items: processes of this machine, a cluster, or an executor."""

MAX_WORKERS = 1_000
BUFFER = 1_000  # outcomes that the caller has not taken: then no more items are begun
CLOSE_S = 30.0  # for a cluster that was started here to end


@attrs.frozen
class EngineChoice:
    """An engine as the caller describes it.

    Attributes:
        engine: The engine.
        workers: The number of processes that are started; None: as the engine decides.
        slots: How many items each of them takes at a time.
        address: The address of a cluster.
        resources: What each item needs.
        options: Further options of the engine for each item.
    """

    engine: Engine
    workers: int | None
    slots: int
    address: str | None
    resources: Resources
    options: dict[str, object]

    @property
    def is_local(self) -> bool:
        """Whether a foreman and its workers on this machine are the engine."""
        return self.engine == "local"


def choose_engine(
    engine: Engine,
    workers: int | None,
    slots: int,
    address: str | None,
    resources: Resources | None,
    options: Mapping[str, object] | None,
) -> EngineChoice:
    """Check the arguments that describe an engine.

    Raises:
        TypeError, ValueError: an argument is wrong, or does not go with this engine.
    """
    given: object = engine
    is_named = isinstance(given, str)
    if is_named and given not in ("local", "dask", "ray"):
        raise ValueError(
            "engine must be 'local', 'dask', 'ray', a Dask client, an Executor or a function that "
            f"makes one, not {shown(given)}"
        )
    is_client = is_dask_client(given)
    if not (is_named or is_client or isinstance(given, Executor) or callable(given)):
        raise TypeError(
            "engine must be 'local', 'dask', 'ray', a Dask client, an Executor or a function "
            f"that makes one, not {shown(given)}"
        )
    if is_client and getattr(given, "asynchronous", False):
        raise ValueError("engine must be a Dask client with asynchronous=False")
    choice = EngineChoice(
        engine,
        None if workers is None else whole_number("workers", workers, least=1, most=MAX_WORKERS),
        whole_number("slots", slots, least=1, most=MAX_SLOTS),
        None if address is None else text("address", address),
        Resources()
        if resources is None
        else instance("resources", resources, Resources, "a Resources"),
        {} if options is None else mapping("engine_options", options),
    )
    is_cluster = given in ("dask", "ray")
    starts = (is_cluster and address is None) or choice.is_local
    takes_options = is_cluster or is_client
    for name, is_given, is_allowed in (
        ("address", address is not None, is_cluster),
        ("workers", workers is not None, starts),
        ("slots", choice.slots != 1, starts),
        ("resources", bool(choice.resources), takes_options),
        ("engine_options", bool(choice.options), takes_options),
    ):
        if is_given and not is_allowed:
            raise ValueError(f"{name} does not go with engine={shown(given)}, which has its own")
    return choice


def open_adapter(choice: EngineChoice) -> EngineAdapter:
    """Connect to an engine, or start it; it blocks.

    Raises:
        EngineLostError: the engine cannot be reached.
        MissingExtraError: a library is not installed.
        TypeError: the function of the caller makes something else than an executor.
    """
    engine = choice.engine
    if isinstance(engine, Executor):
        return ExecutorAdapter(engine)
    if isinstance(engine, str):
        opener: Callable[..., EngineAdapter] = open_dask if engine == "dask" else open_ray
        return opener(
            choice.address, choice.workers, choice.slots, choice.resources, choice.options
        )
    if is_dask_client(engine):
        return DaskAdapter(cast("DaskClient", engine), choice.resources, choice.options)
    make = cast("Callable[[], Executor]", engine)
    return ExecutorAdapter(made(make), make)


def check_reachable(store: Store, submission: JobSubmission) -> None:
    """Check that other processes can open the store of a job whose items save.

    Raises:
        ValueError: they cannot.
    """
    if submission.options.checkpoint_interval_s is None:
        return
    if store.url.startswith("memory:"):
        raise ValueError(
            "with checkpoint_interval_s items save their states in the store, and no other process "
            "reaches a store in memory: give map_tasks a store that all machines reach"
        )
    if store.mac_key is not None:
        raise ValueError(
            "with checkpoint_interval_s items save their states in the store, and its MAC key "
            "does not travel to other machines: use a store without one, or engine='local'"
        )


@attrs.frozen
class Outcomes:
    """The outcomes of a job as they are durable: ``async for index, outcome in …``."""

    _channel: trio.MemoryReceiveChannel[tuple[int, Plain | TaskFailedError]]

    def __aiter__(self) -> Outcomes:
        return self

    async def __anext__(self) -> tuple[int, Plain | TaskFailedError]:
        """Return the next one.

        Cancellation: a cancellation point; no outcome is lost.
        """
        return await anext(self._channel)


@asynccontextmanager
async def open_outcomes(
    store: Store, job_id: str, submission: JobSubmission, choice: EngineChoice
) -> AsyncGenerator[Outcomes]:
    """Run a job in an engine for a block; yields the outcomes of its items.

    A job without work left needs no engine.

    Args:
        store: The store of the job.
        job_id: The job.
        submission: The function, items and options.
        choice: The engine, which is not "local".

    Raises:
        Exception: as `JobDriver.run`; and what `open_adapter` raises.

    Cancellation: interrupts the job; items that run end at their next point.
    """
    check_reachable(store, submission)
    send, receive = trio.open_memory_channel[tuple[int, Plain | TaskFailedError]](BUFFER)

    async def deliver(index: int, outcome: Plain | TaskFailedError) -> None:
        await send.send((index, outcome))

    is_left, is_again = await check_work_left(store, job_id, submission)
    with send, receive:
        async with AsyncExitStack() as stack:
            calls = await stack.enter_async_context(_open_calls(choice)) if is_left else None
            driver = JobDriver(store, job_id, submission, calls, deliver, is_again)

            async def drive() -> None:
                await driver.run()
                send.close()

            nursery = await stack.enter_async_context(open_service_nursery())
            if calls is not None:
                nursery.start_soon(calls.run)
            nursery.start_soon(drive)
            yield Outcomes(receive)


@asynccontextmanager
async def _open_calls(choice: EngineChoice) -> AsyncGenerator[EngineCalls]:
    """Connect to an engine for a block, or start it and end it with the block."""
    adapter = await run_blocking(open_adapter, choice)
    try:
        yield EngineCalls(adapter)
    finally:
        with give_up_after(CLOSE_S):
            await _close(adapter)
        await close_host()


async def _close(adapter: EngineAdapter) -> None:
    """End what was started for this job, best effort."""
    try:
        await trio.to_thread.run_sync(adapter.close, abandon_on_cancel=True)
    except Exception as error:
        log.warning("the engine was not ended in good order: %s", one_line(text_of(error)))
