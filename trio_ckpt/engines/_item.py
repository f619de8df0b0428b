"""One work item in a process of an engine: plain bytes in, plain bytes out.

Theory of operation.  The engine decides where and when `run_item` runs, and may run one item twice,
at once or one after the other, or drop what it returned.  So the result of an item that saves is
durable in the item's own run before `run_item` returns it; a second attempt waits for the lock of
that run, finds the result, and returns it.  The driver removes the run once the result is in the
run of the job.  A process that comes after that makes the run again, of a later generation: it asks
the job's run whether the item is done, and removes what it made.

The driver may end in good order while functions still run: it was cancelled, or another item has
failed the job.  The end of its session in the job's run is a fence: an item looks for it every
`watch_s` seconds, saves its state at the next point, and ends there.  A driver that was killed
leaves no such record, so its items go on, and the next driver finds their results.

An item that saves nothing takes no lock and opens no store, unless it has points and runs longer
than `watch_s`.
A function without a second parameter has no points: it runs without trio.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated, Literal, NoReturn

import attrs
import msgspec
import trio

from .._journal.history import session_metadata_of
from .._journal.store import Durability, RunKey, Store
from .._runs.run_lock import take_lock
from .._util.errors import StoreError
from .._util.exceptions import text_of
from .._util.forks import this_process
from .._util.log import at, get_logger
from .._util.nursery import open_service_nursery
from .._util.patience import sleep_awake
from .._util.plain import Plain
from .._util.text import one_line
from ..remote._foreman.job_reader import items_progress
from ..remote._foreman.task_checkpoints import TaskCheckpoints, read_task_checkpoints
from ..remote._wire.job_messages import TaskError
from ..remote._wire.message import (
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARS,
    TaskMessage,
    Text,
)
from ..remote._wire.submission import as_sent
from ..remote._wire.task_messages import (
    AssignTask,
    ReleaseTask,
    TaskFailed,
    TaskProgress,
    TaskResult,
)
from ..remote._worker.work import load_function, settings_of, takes_work
from ..remote._worker.work_item import MAX_NOTED, Item, describe_failure
from ..remote._worker.worker import checked_name
from ._errors import OtherStoreError
from ._item_store import ItemStore, open_shared_store

log = get_logger(__name__)

SAVE_TIMEOUT_S = 60.0  # of an item, as for a run
GRACE_S = 30.0  # for the function of a job that was stopped to reach a point
STOPPED = "its job was stopped"
MAX_CHECKED = 1_000  # sessions of drivers


class SpecBytes(bytes):
    """An encoded `ItemSpec`, which holds the address of a store: engines log arguments."""

    def __repr__(self) -> str:
        return f"<a work item, {len(self)} bytes>"


class ItemSpec(msgspec.Struct, frozen=True, array_like=True):
    """What an engine carries to the process that runs an item.

    Attributes:
        assigned: The item; its lease is the number under which the driver owns the job's run.
        store: The address of the store; empty: no other process can open it.
        durability: What an acknowledged save survives.
        began: When the driver's session began, Unix time, s: it tells the store from others.
        watch_s: How often the item asks whether the job is still wanted, in seconds.
    """

    assigned: AssignTask
    store: str
    durability: Durability
    began: float
    watch_s: float


class ItemEnd(msgspec.Struct, frozen=True, array_like=True):
    """How the attempt of one process at an item ended.

    Attributes:
        how: "returned"; "raised"; "released": the process could not continue, or the job was
            stopped; "elsewhere": the store is not that of the driver.
        worker: The name of the process.
        value: What the function returned.
        error: What the function raised.
        reason: Why the item was released.
        saved: The saved states of the item.
        notes: Lines for the history of the job.
        task_id: The item.
        attempt: Which attempt at it; an engine that mixes up results is noticed by these two.
        generation: That of the item's run: its states are removed without a question for it.
    """

    how: Literal["returned", "raised", "released", "elsewhere"]
    worker: Text
    value: Plain = None
    error: TaskError | None = None
    reason: Text = ""
    saved: dict[str, Plain] = {}
    notes: Annotated[list[Text], msgspec.Meta(max_length=MAX_NOTED)] = []
    task_id: Text = ""
    attempt: int = 0
    generation: int = 0


_encoder = msgspec.msgpack.Encoder()
_specs = msgspec.msgpack.Decoder(ItemSpec)
_ends = msgspec.msgpack.Decoder(ItemEnd)


def encode_spec(spec: ItemSpec) -> SpecBytes:
    """Return what `run_item` is called with."""
    return SpecBytes(_encoder.encode(spec))


def decode_end(data: object) -> ItemEnd:
    """Return what `run_item` has returned.

    Raises:
        ValueError: it is something else, as of a process with another version of the library.
    """
    if not isinstance(data, bytes):
        raise ValueError(f"it returned {type(data).__name__}, not bytes")
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"it returned {len(data):,} bytes, over {MAX_MESSAGE_BYTES:,}")
    try:
        return _ends.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"what it returned cannot be read: {error}") from error


def run_item(spec: bytes) -> bytes:
    """Run a work item in this process; the one function that engines call.

    Args:
        spec: An encoded `ItemSpec`.

    Returns:
        An encoded `ItemEnd`.

    Raises:
        KeyboardInterrupt: the engine, or a person, interrupts the process.

    Durability: the result of an item that saves is durable when this returns.
    """
    found = _specs.decode(spec)
    assigned = found.assigned
    end = _run_without_trio(assigned) or trio.run(_run, found)
    return _encoder.encode(
        msgspec.structs.replace(end, task_id=assigned.task_id, attempt=assigned.attempt)
    )


# -- functions that need no trio -------------------------------------------------------------------


def _run_without_trio(assigned: AssignTask) -> ItemEnd | None:
    """Call a function that has no points and saves nothing; None: it is not such a function."""
    if assigned.interval_s is not None:
        return None
    try:
        func = load_function(assigned.function, allowed(assigned.function))
    except Exception as error:
        return ItemEnd("raised", worker_name(), error=describe_failure(error))
    if not _is_plain(func):
        return None
    try:
        return ItemEnd("returned", worker_name(), _call_plain(func, assigned.item))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit fails the item, too, and not the process
        return ItemEnd("raised", worker_name(), error=describe_failure(error))


def allowed(function: str) -> tuple[str]:
    """The modules whose functions a process may run for an item: that of its function."""
    return (function.partition(":")[0],)


@functools.lru_cache(maxsize=64)
def _is_plain(func: Callable[..., object]) -> bool:
    is_sync = not inspect.iscoroutinefunction(func) and not settings_of(func).in_process
    return is_sync and not takes_work(func)


def _call_plain(func: Callable[..., object], item: Plain) -> Plain:
    returned = func(item)
    if inspect.isawaitable(returned):
        raise TypeError(f"{func.__qualname__} returned an awaitable: make it async")
    return as_sent(returned, "the result", allow_nan=True)[0]


# -- functions with a `Work` -----------------------------------------------------------------------


@attrs.define(eq=False)
class EngineHost:
    """The engine as an item sees it: what the item says on its way goes back with its end.

    Attributes:
        lease: The number under which this process has the item.
        patience_s: How long a save of the item may take, in seconds.
        lost: Always None: the store itself refuses a process that has lost the item.
        notes: Lines for the history of the job.
    """

    lease: int
    patience_s: float = SAVE_TIMEOUT_S
    lost: Exception | None = None
    notes: list[str] = attrs.field(factory=list[str], init=False)

    def send(self, message: TaskMessage) -> bool:
        """Keep a note for the end of the item; no process waits for its progress."""
        if (
            isinstance(message, TaskProgress)
            and message.note is not None
            and len(self.notes) < MAX_NOTED
        ):
            self.notes.append(message.note)
        return False


@attrs.define(eq=False)
class StopWatch:
    """Ends an item whose job was stopped.

    Attributes:
        spec: The item.
        waiting: The scope in which the item waits until it may run.
        item: The item, once it runs.
    """

    spec: ItemSpec
    waiting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    item: Item[EngineHost] | None = attrs.field(default=None, init=False)

    async def run(self, store: Store) -> None:
        """Wait until the job is stopped; then end the item.

        Cancellation: ends it.
        """
        while True:
            await trio.sleep(self.spec.watch_s)
            if await self._is_stopped(store):
                break
        if self.item is None:
            self.waiting.cancel()
            return
        log.info("%s ends: %s", self.item.task_id, STOPPED, extra=at(self.item.task_id))
        self.item.control.release_reason = STOPPED
        await sleep_awake(GRACE_S)
        self.item.control.scope.cancel()

    async def run_late(self) -> None:
        """Do the same for an item that saves nothing: most end before the store is asked.

        Cancellation: ends it.
        """
        await trio.sleep(self.spec.watch_s)
        try:
            async with open_shared_store(self.spec.store, self.spec.durability) as store:
                await _check_store(store, self.spec)  # in another one the job is not there
                await self.run(store)
        except (OtherStoreError, StoreError) as error:
            task_id = self.spec.assigned.task_id
            log.warning("%s cannot be stopped: %s", task_id, _reason(error), extra=at(task_id))

    async def _is_stopped(self, store: Store) -> bool:
        """Whether the driver has ended in good order, and no other one has taken the job over."""
        job_id = self.spec.assigned.job_id
        try:
            if await store.read_owner(job_id) is not None:
                return False
            view = await store.load_run(job_id)
        except StoreError as error:
            log.info("whether %s is stopped is not known: %s", job_id, _reason(error))
            return False
        return view is None or "ended" in session_metadata_of(view)


async def _run(spec: ItemSpec) -> ItemEnd:
    try:
        if spec.assigned.interval_s is None:
            return await _run_unsaved(spec)
        return await _run_saving(spec)
    except OtherStoreError as error:
        return ItemEnd("elsewhere", worker_name(), reason=_reason(error))
    except StoreError as error:
        return ItemEnd("released", worker_name(), reason=_reason(error))


def _reason(error: BaseException) -> str:
    return one_line(text_of(error))[:MAX_TEXT_CHARS]


def worker_name() -> str:
    """The name of this process, in the history of the job."""
    return checked_name(None)


async def _run_unsaved(spec: ItemSpec) -> ItemEnd:
    watch, host = StopWatch(spec), EngineHost(spec.assigned.lease)
    item = watch.item = Item(spec.assigned, host, _no_store, may_be_interrupted=True)
    async with open_service_nursery() as nursery:
        if spec.store:
            nursery.start_soon(watch.run_late)
        await item.run(allowed(spec.assigned.function))
    return _end_of(item, TaskCheckpoints())


def _no_store() -> NoReturn:
    raise StoreError("an item without checkpoints has no store")


async def _run_saving(spec: ItemSpec) -> ItemEnd:
    watch = StopWatch(spec)
    async with (
        open_shared_store(spec.store, spec.durability) as store,
        open_service_nursery() as nursery,
    ):
        await _check_store(store, spec)
        nursery.start_soon(watch.run, store)
        with watch.waiting:
            async with AsyncExitStack() as stack:
                owner, _ = await take_lock(stack, store, spec.assigned.task_id, math.inf)
                own = ItemStore(store, spec.assigned.task_id, owner)
                end = await _run_owned(own, owner, watch)
                return msgspec.structs.replace(end, generation=own.generation)
    return ItemEnd("released", worker_name(), reason=STOPPED)


async def _run_owned(store: ItemStore, owner: int, watch: StopWatch) -> ItemEnd:
    """Run an item whose run this process owns, unless it is done already."""
    spec = watch.spec
    saved = store.saved = await read_task_checkpoints(store, spec.assigned.task_id)
    if saved.is_done:
        return ItemEnd("returned", worker_name(), saved.result, saved=saved.to_plain())
    if not saved.sequence and await _is_settled(store, spec, owner):
        return ItemEnd("released", worker_name(), reason="the job has its result already")
    assigned = msgspec.structs.replace(spec.assigned, lease=owner)
    item = watch.item = Item(assigned, EngineHost(owner), lambda: store, may_be_interrupted=True)
    await item.run(allowed(assigned.function))
    return _end_of(item, store.saved)


def _end_of(item: Item[EngineHost], saved: TaskCheckpoints) -> ItemEnd:
    worker, notes = worker_name(), item.host.notes
    match item.final_message:
        case TaskResult(value=value):
            return ItemEnd("returned", worker, value, saved=saved.to_plain(), notes=notes)
        case TaskFailed(error=error):
            return ItemEnd("raised", worker, error=error, notes=notes)
        case ReleaseTask(reason=reason):
            return ItemEnd("released", worker, reason=reason, notes=notes)
        case _:
            return ItemEnd("released", worker, reason="it ended without a result", notes=notes)


# -- what the job's run says -----------------------------------------------------------------------

_checked: set[tuple[int, str, str, float]] = set()  # sessions of drivers whose store was found


async def _check_store(store: Store, spec: ItemSpec) -> None:
    """Check that this is the driver's store; once in a process for each session of a driver.

    Raises:
        OtherStoreError: it is another one.
    """
    job_id = spec.assigned.job_id
    key = (this_process(), spec.store, job_id, spec.began)
    if key in _checked:
        return
    view = await store.load_run(job_id)
    began = None if view is None else session_metadata_of(view).get("began")
    if view is None or (began != spec.began and view.owner <= spec.assigned.lease):
        raise OtherStoreError(
            f"{worker_name()} has opened {store.url}, and there is no job {job_id!r} of this "
            "driver in it: it is another store of that name; give map_tasks a store that all "
            "machines reach under one address",
            run_id=job_id,
        )
    if len(_checked) >= MAX_CHECKED:
        _checked.clear()
    _checked.add(key)


async def _is_settled(store: ItemStore, spec: ItemSpec, owner: int) -> bool:
    """Whether the job has the result of an item without records; then its run is removed again.

    A run that was removed and made again has a later generation: no other run costs a question.
    """
    task_id = spec.assigned.task_id
    stored = await store.read_run(task_id)
    if stored is None or not stored.generation:
        return False
    view = await store.load_run(spec.assigned.job_id)
    if view is not None and not items_progress(view).is_done(spec.assigned.index):
        return False
    await store.prune(RunKey(task_id, stored.generation, owner), keep=0)
    return True
