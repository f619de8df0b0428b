"""`map_tasks`: a foreman in this process, and workers that end with it.

Theory of operation.  The foreman listens on a free port of the loopback device with a random
secret.  Each worker is a separate process, so that functions that hold the interpreter do not block
each other.  A worker reads its settings from its standard input, and ends when that is closed: so
no worker outlives this process, however it dies.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Concatenate, Literal, TypedDict, TypeVar, overload

import attrs
import msgspec
import trio

from .._journal.store import Store
from .._util.arguments import any_path, several
from .._util.errors import StoreDamagedError
from .._util.forks import unshare
from .._util.log import get_logger
from .._util.nursery import open_service_nursery
from .._util.patience import give_up_after
from ..remote import (
    Client,
    Foreman,
    NotAllowedError,
    Results,
    TaskFailedError,
    new_secret,
    serve_foreman,
)
from ..remote._inside import connect_inside
from ..remote._wire.names import check_job_id, new_job_id
from ..remote._wire.submission import JobArguments, checked_submission, job_options
from ..stores import open_store
from ._engine import Resources
from ._open_map import MAX_WORKERS, Engine, choose_engine, open_outcomes

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python has it from 3.12 on

log = get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Errors = Literal["raise", "collect"]

DEFAULT_GRACE_S = 1.0  # workers are on this machine: a lost one does not reconnect late
STOP_S = 1.0  # for a worker to end by itself; the whole stop takes less than 2 s
WORKER_MODULE = "trio_ckpt.engines._worker"


class _Options(TypedDict, total=False):
    """The arguments of `map_tasks` that its types do not depend on."""

    engine: Engine
    workers: int | None
    slots: int
    address: str | None
    resources: Resources | None
    engine_options: Mapping[str, object] | None
    store: Store | str | os.PathLike[str]
    checkpoint_interval_s: float | None
    attempts: int
    losses: int
    job_id: str | None


@overload
async def map_tasks(
    func: str, items: Iterable[Any], *, errors: Errors = "raise", **options: Unpack[_Options]
) -> list[Any]: ...


@overload
async def map_tasks(
    func: Callable[Concatenate[T, ...], Coroutine[Any, Any, R]],
    items: Iterable[T],
    *,
    errors: Literal["raise"] = "raise",
    **options: Unpack[_Options],
) -> list[R]: ...


@overload
async def map_tasks(
    func: Callable[Concatenate[T, ...], Coroutine[Any, Any, R]],
    items: Iterable[T],
    *,
    errors: Errors,
    **options: Unpack[_Options],
) -> list[R | TaskFailedError]: ...


@overload
async def map_tasks(
    func: Callable[Concatenate[T, ...], R],
    items: Iterable[T],
    *,
    errors: Literal["raise"] = "raise",
    **options: Unpack[_Options],
) -> list[R]: ...


@overload
async def map_tasks(
    func: Callable[Concatenate[T, ...], R],
    items: Iterable[T],
    *,
    errors: Errors,
    **options: Unpack[_Options],
) -> list[R | TaskFailedError]: ...


async def map_tasks(
    func: Callable[..., Any] | str,
    items: Iterable[Any],
    *,
    errors: Errors = "raise",
    **options: Unpack[_Options],
) -> list[Any]:
    """Call a function with each item, in several processes; return the results in order.

    Args:
        func: A function of a module, called as ``func(item, work)``, or as ``func(item)`` if
            it has one parameter; or its name, ``module:function``.
        items: JSON-like values.
        errors: "raise", or "collect": the error of an item takes the place of its result.
        engine: What runs the items: "local", the default, are processes of this machine.  "dask"
            and "ray" are a cluster, started on this machine where `address` names none; a Dask
            client, or any `concurrent.futures.Executor`, stays open.  A function that returns an
            executor is called again when that is broken.
        workers: The number of processes that are started; default: one for each processor.
        slots: How many items each process takes at a time.
        address: The address of the cluster.
        resources: What each item needs, for a cluster.
        engine_options: Further options of a cluster: arguments of ``Client.map`` of Dask, options
            of a remote function of Ray.
        store: The store for jobs and checkpoints: a folder, a URL, or a store.  Where items save,
            all processes have to reach it under its address.
        checkpoint_interval_s: How often a running item saves its state, at most, in seconds;
            None: never.
        attempts: How often an item is tried when its function raises; default: 1.
        losses: How many workers may be lost with an item before the item fails; default: 5.
        job_id: A name, ``job-…``: the same call under the same name, with the same store,
            continues the earlier one, also with another engine.

    Returns:
        One result for each item.

    Raises:
        TaskFailedError: an item failed.
        NotAllowedError: another process cannot import the function.
        NotEncodableError: an item is not JSON-like.
        EngineLostError: the engine runs no more items; the same call continues the job.
        OtherStoreError: a process of the engine has opened another store than this one.
        RunLockedError: another process runs this job now.
        MissingExtraError: Dask or Ray is not installed.
        TypeError, ValueError: an argument is wrong; the message has its name and value.
        StoreError: the store cannot be used.

    Durability: results and saved states survive whatever the store promises.
    Cancellation: interrupts the job and ends the processes that were started; items that run
        elsewhere save their states and end at their next point.  The same call with the same
        `job_id` continues the job, where the store is still there.
    """
    values = several("items", items, "JSON-like values")
    found: dict[int, object] = {}
    async with open_map(func, values, errors=errors, **options) as outcomes:
        async for index, outcome in outcomes:
            found[index] = outcome
    missing = len(values) - len(found)
    if missing:
        raise StoreDamagedError(f"{missing} of {len(values)} results are missing")
    return [found[index] for index in range(len(values))]


@asynccontextmanager
async def open_map(
    func: Callable[..., Any] | str,
    items: Iterable[Any],
    *,
    errors: Errors = "raise",
    engine: Engine = "local",
    workers: int | None = None,
    slots: int = 1,
    address: str | None = None,
    resources: Resources | None = None,
    engine_options: Mapping[str, object] | None = None,
    store: Store | str | os.PathLike[str] = "memory:",
    checkpoint_interval_s: float | None = None,
    attempts: int = 1,
    losses: int = 5,
    job_id: str | None = None,
) -> AsyncGenerator[AsyncIterator[tuple[int, Any]]]:
    """Call a function with each item, as `map_tasks` does, and give out results as they come.

    Args: as for `map_tasks`.

    Yields:
        The outcomes: ``async for index, outcome in outcomes``.  With ``errors="collect"`` the
        outcome of an item that failed is a `TaskFailedError`.

    Raises: as for `map_tasks`, from the block.

    Durability: an outcome that is given out survives whatever the store promises.
    Cancellation: as for `map_tasks`; leaving the block early interrupts the job, too.
    """
    choice = choose_engine(engine, workers, slots, address, resources, engine_options)
    name = func if isinstance(func, str) else name_of(func)
    options: JobArguments = {
        "checkpoint_interval_s": checkpoint_interval_s,
        "errors": errors,
        "attempts": attempts,
        "losses": losses,
    }
    submission = checked_submission(name, items, job_options(**options))
    job_id = new_job_id() if job_id is None else check_job_id(job_id)
    async with AsyncExitStack() as stack:
        if not isinstance(store, Store):
            store = await open_store(any_path("store", store))
            stack.push_async_callback(_close, store)
        if not choice.is_local:
            yield await stack.enter_async_context(open_outcomes(store, job_id, submission, choice))
            return
        count = choice.workers or min(os.cpu_count() or 1, MAX_WORKERS)
        allow = name.partition(":")[0]
        client = await stack.enter_async_context(open_engine(store, count, allow, choice.slots))
        await client.submit(name, submission.items, job_id=job_id, **options)
        yield _LocalOutcomes(client.results(job_id))


@attrs.frozen
class _LocalOutcomes:
    """The results of a job at a foreman of this process, as `open_map` gives them out."""

    _results: Results

    def __aiter__(self) -> _LocalOutcomes:
        return self

    async def __anext__(self) -> tuple[int, Any]:
        result = await anext(self._results)
        return result.index, result.value if result.error is None else result.error


@asynccontextmanager
async def open_engine(
    store: Store, count: int, allow: str, slots: int = 1
) -> AsyncGenerator[Client]:
    """Run a foreman and workers for a block; yields a client of the foreman.

    Args:
        store: The store for jobs and checkpoints.
        count: The number of workers.
        allow: The module whose functions they run.
        slots: How many items each worker takes at a time.

    Cancellation: ends the processes.
    """
    secret = new_secret()
    async with (
        _foreman(store, secret) as foreman,
        open_workers(count, foreman.url, secret, allow, slots),
        connect_inside(foreman, "map_tasks") as client,
    ):
        yield client


async def _close(store: Store) -> None:
    with trio.CancelScope(shield=True):
        await store.aclose()


def name_of(func: Callable[..., Any]) -> str:
    """Return the name by which another process imports a function.

    Raises:
        NotAllowedError: the function has no such name.
    """
    if not inspect.isfunction(func) or func.__qualname__ != func.__name__:
        raise NotAllowedError(
            f"{func!r} is not a function of a module: workers import functions by their names"
        )
    module = func.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is None:
            raise NotAllowedError(
                f"{func.__name__} is in the program that was started, which workers cannot "
                "import: move it into a module, or start the program with python -m"
            )
        module = spec.name.removesuffix(".__main__")
    return f"{module}:{func.__name__}"


@asynccontextmanager
async def _foreman(store: Store, secret: str) -> AsyncGenerator[Foreman]:
    """Run a foreman on the loopback device for a block."""

    async def serve(*, task_status: trio.TaskStatus[Foreman]) -> None:
        await serve_foreman(
            store, secret=secret, port=0, grace_s=DEFAULT_GRACE_S, task_status=task_status
        )

    async with open_service_nursery() as nursery:
        foreman: Foreman = await nursery.start(serve)
        yield foreman


@asynccontextmanager
async def open_workers(
    count: int, url: str, secret: str, allow: str, slots: int = 1
) -> AsyncGenerator[None]:
    """Run workers as processes for a block; a worker that dies is replaced.

    Args:
        count: The number of workers.
        url: The foreman's URL.
        secret: The foreman's secret.
        allow: The module whose functions they run.
        slots: How many items each takes at a time.

    Cancellation: ends the processes, all at once, within `STOP_S`.
    """
    told = msgspec.json.encode(
        {"url": url, "secret": secret, "allow": [allow], "slots": slots, "path": sys.path}
    )
    async with open_service_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(_keep_running, told + b"\n")
        yield


async def _keep_running(told: bytes) -> None:
    while True:
        code = await _run_worker(told)
        log.warning("a worker has ended with %d: starting another", code)
        await trio.sleep(0.1)  # a worker that cannot start is not retried in a busy loop


async def _run_worker(told: bytes) -> int:
    """Run one process until it ends; on cancellation, until it was ended."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", WORKER_MODULE], stdin=subprocess.PIPE
    )
    pipe = process.stdin
    if isinstance(pipe, trio.lowlevel.FdStream):
        unshare(pipe)  # a forked child would inherit the pipe and keep the worker alive
    try:
        try:
            if pipe is not None:
                await pipe.send_all(told)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has ended already
        return await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            if pipe is not None:
                await pipe.aclose()  # this ends the process
            with give_up_after(STOP_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
