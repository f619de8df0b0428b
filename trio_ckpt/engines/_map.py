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
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Concatenate, Literal, TypedDict, TypeVar, overload

import msgspec
import trio

from .._journal.store import Store
from .._util.arguments import any_path, one_of, whole_number
from .._util.forks import unshare
from .._util.log import get_logger
from .._util.nursery import open_service_nursery
from .._util.patience import give_up_after
from ..remote import (
    Client,
    Foreman,
    NotAllowedError,
    TaskFailedError,
    new_secret,
    serve_foreman,
)
from ..remote._inside import connect_inside
from ..remote._wire.message import MAX_SLOTS
from ..remote._wire.names import check_job_id
from ..remote._wire.submission import JobArguments, checked_submission, job_options
from ..stores import open_store

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python has it from 3.12 on

log = get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Errors = Literal["raise", "collect"]

MAX_WORKERS = 1_000
DEFAULT_GRACE_S = 1.0  # workers are on this machine: a lost one does not reconnect late
STOP_S = 1.0  # for a worker to end by itself; the whole stop takes less than 2 s
WORKER_MODULE = "trio_ckpt.engines._worker"


class _Options(TypedDict, total=False):
    """The arguments of `map_tasks` that its types do not depend on."""

    engine: Literal["local"]
    workers: int | None
    slots: int
    store: Store | str | os.PathLike[str]
    checkpoint_interval_s: float | None
    attempts: int
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
    engine: Literal["local"] = "local",
    workers: int | None = None,
    slots: int = 1,
    store: Store | str | os.PathLike[str] = "memory:",
    checkpoint_interval_s: float | None = None,
    attempts: int = 1,
    job_id: str | None = None,
) -> list[Any]:
    """Call a function with each item, in several processes; return the results in order.

    Args:
        func: A function of a module, called as ``func(item, work)``, or as ``func(item)`` if
            it has one parameter; or its name, ``module:function``.
        items: JSON-like values.
        errors: "raise", or "collect": the error of an item takes the place of its result.
        engine: "local": processes of this machine.
        workers: The number of processes; default: one for each processor.
        slots: How many items each process takes at a time.
        store: The store for jobs and checkpoints: a folder, a URL, or a store.
        checkpoint_interval_s: How often a running item saves its state, at most, in seconds;
            None: never.
        attempts: How often an item is tried when its function raises.
        job_id: A name, ``job-…``: the same call under the same name, with the same store,
            continues the earlier one.

    Returns:
        One result for each item.

    Raises:
        TaskFailedError: an item failed.
        NotAllowedError: another process cannot import the function.
        NotEncodableError: an item is not JSON-like.
        TypeError, ValueError: an argument is wrong; the message has its name and value.
        StoreError: the store cannot be used.

    Durability: results and saved states survive whatever the store promises.
    Cancellation: interrupts the job and ends the processes; the same call with the same `job_id`
        continues it, where the store is still there.
    """
    one_of("engine", engine, ("local",))
    count = min(os.cpu_count() or 1, MAX_WORKERS)
    if workers is not None:
        count = whole_number("workers", workers, least=1, most=MAX_WORKERS)
    slots = whole_number("slots", slots, least=1, most=MAX_SLOTS)
    name = func if isinstance(func, str) else name_of(func)
    options: JobArguments = {
        "checkpoint_interval_s": checkpoint_interval_s,
        "errors": errors,
        "attempts": attempts,
    }
    submission = checked_submission(name, items, job_options(**options))
    if job_id is not None:
        check_job_id(job_id)
    async with AsyncExitStack() as stack:
        if not isinstance(store, Store):
            store = await open_store(any_path("store", store))
            stack.push_async_callback(_close, store)
        allow = name.partition(":")[0]
        client = await stack.enter_async_context(open_engine(store, count, allow, slots))
        job_id = await client.submit(name, submission.items, job_id=job_id, **options)
        return await client.attach(job_id)  # cancelled, it leaves the job as it is, at once


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
