"""Dask as an engine: items are tasks of a scheduler, whose keys are the items' ids.

Theory of operation.  A group of items is one ``Client.map``.  Futures of Dask say that they are
done, and their results are fetched from the workers: one by one that is a round trip each.  So a
thread takes all futures that are done, and gathers their results in one call.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Protocol, cast

import attrs
from outcome import Error, Outcome, Value

from .._util.exceptions import text_of
from .._util.extras import needs_extra
from .._util.log import get_logger
from .._util.text import one_line
from .._util.threads import start_thread
from ._engine import EngineAdapter, EngineCall, OnEnd, Resources, lost
from ._errors import EngineLostError
from ._item import run_item

log = get_logger(__name__)

CONNECT_S = 10  # for the scheduler to answer
GATHER_EVERY_S = 0.02  # results that arrive together cost one round trip
FETCH_S = 60.0  # for the results that are done to arrive
FETCH_ONE_S = 5.0  # then for each of them
DONE = "finished"  # as Dask says it
CLOSE_S = 5  # for workers to end; then they are killed


class DaskFuture(Protocol):
    """What is used of ``distributed.Future``."""

    key: str
    status: str

    def exception(self) -> BaseException | None:
        """The exception of a future that has failed."""
        ...


class DaskClient(Protocol):
    """What is used of ``distributed.Client``."""

    asynchronous: bool
    loop: object

    def map(self, func: object, *iterables: object, **options: object) -> list[DaskFuture]:
        """Submit a call of a function with each of some values."""
        ...

    def gather(self, futures: list[DaskFuture], *, asynchronous: bool) -> Awaitable[list[object]]:
        """Fetch the results of futures that are done."""
        ...

    def sync(
        self, func: Callable[[], Awaitable[list[object]]], *, callback_timeout: float
    ) -> list[object]:
        """Call a function in the client's event loop, and wait for at most so many seconds."""
        ...

    def cancel(self, futures: list[DaskFuture]) -> None:
        """Drop futures, and what has not begun of them."""
        ...

    def scheduler_info(self, n_workers: int = ...) -> Mapping[str, object]:
        """The workers, among other things."""
        ...

    def close(self, timeout: float = ...) -> None:
        """End the connection."""
        ...


class _Cluster(Protocol):
    def close(self, timeout: float = ...) -> None: ...


class _Completed(Protocol):
    """What is used of ``distributed.as_completed``."""

    def update(self, futures: Iterable[DaskFuture]) -> None: ...
    def next_batch(self, block: bool) -> list[DaskFuture]: ...
    def clear(self) -> None: ...


class _Distributed(Protocol):
    """What is used of the module ``distributed``."""

    def Client(self, address: object, **options: object) -> DaskClient: ...  # noqa: N802
    def LocalCluster(self, **options: object) -> _Cluster: ...  # noqa: N802
    def as_completed(self, **options: object) -> _Completed: ...


class _Config(Protocol):
    """What is used of the module ``dask.config``."""

    def set(self, settings: Mapping[str, object]) -> AbstractContextManager[object]: ...


_SETTINGS = {"distributed.deploy.lost-worker-timeout": "365 days"}
"""While a cluster runs that was started here: after 15 s, the default, Dask looks whether a worker
that was lost is there again, and gives it up for good if it has just been lost once more."""


def _distributed() -> _Distributed:
    with needs_extra("dask", "engine='dask'"):
        return cast("_Distributed", importlib.import_module("distributed"))


def is_dask_client(engine: object) -> bool:
    """Whether an object is a client of Dask; Dask is not imported for that."""
    kinds = type(engine).__mro__
    return any(kind.__module__.startswith("distributed.") for kind in kinds) and hasattr(
        engine, "scheduler_info"
    )


@attrs.define(eq=False)
class DaskAdapter(EngineAdapter):
    """A client of Dask; closing `_owned` ends what was started for it."""

    _client: DaskClient
    _resources: Resources
    _options: Mapping[str, object]
    _owned: ExitStack = attrs.field(factory=ExitStack)
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _calls: dict[str, tuple[EngineCall, DaskFuture, OnEnd]] = attrs.field(
        factory=dict[str, "tuple[EngineCall, DaskFuture, OnEnd]"], init=False
    )
    _completed: _Completed = attrs.field(init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._completed = _distributed().as_completed(loop=self._client.loop)
        start_thread(self._gather_all, "trio_ckpt gathers from Dask")

    def submit(self, calls: Sequence[EngineCall], on_end: OnEnd) -> None:
        """See `EngineAdapter.submit`."""
        if not calls:
            return
        try:
            futures = self._client.map(
                run_item,
                [call.spec for call in calls],
                key=[call.key for call in calls],
                pure=False,
                batch_size=None,
                **_dask_resources(self._resources),
                **self._options,
            )
        except Exception as error:  # the client is closed, say
            raise lost("the Dask cluster", error) from error
        with self._changed:
            for call, future in zip(calls, futures, strict=True):
                self._calls[future.key] = (call, future, on_end)
            self._completed.update(futures)
            self._changed.notify()

    def _gather_all(self) -> None:
        """Fetch results until closed; the body of a thread, which alone takes futures out."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._is_closed)
            if self._is_closed:
                self._completed.clear()
                return
            try:
                self._gather(self._completed.next_batch(block=False))
            except BaseException as error:  # no item may wait for a thread that has failed
                log.warning("results of Dask were not fetched: %s", one_line(text_of(error)))
                self._end_all(lost("the Dask cluster", error))
            time.sleep(GATHER_EVERY_S)

    def _gather(self, futures: list[DaskFuture]) -> None:
        """End each of some futures that Dask says are done; one may be lost again."""
        statuses = [future.status for future in futures]  # read once, as they change meanwhile
        done = [future for future, status in zip(futures, statuses, strict=True) if status == DONE]
        for future, outcome in self._fetch(done, FETCH_S):
            if outcome is None:
                self._completed.update([future])
            else:
                self._end(future, outcome)
        for future, status in zip(futures, statuses, strict=True):
            if status == "error":
                self._end(future, Error(future.exception() or EngineLostError("it has failed")))
            elif status != DONE:
                self._end(future, Error(EngineLostError(f"Dask says that it is {status}")))

    def _fetch(
        self, futures: list[DaskFuture], limit_s: float
    ) -> Iterator[tuple[DaskFuture, Outcome[object] | None]]:
        """Fetch results in one round trip; one by one if that fails, which may be due to one.

        The worker that has a result may be lost, or hang.  Results do not wait for that of another
        item, so a result that does not arrive is a loss.  Dask makes one request of several that
        are made at a time, so they are made one after another, and not of results that Dask has
        given up meanwhile.

        Yields:
            Each future as it is known, and its outcome; None: it is being computed again.
        """
        if not futures:
            return
        gather = partial(self._client.gather, futures, asynchronous=True)
        try:
            results = self._client.sync(gather, callback_timeout=limit_s)
        except Exception as error:
            if len(futures) == 1:
                yield futures[0], _outcome_of(futures[0], error, limit_s)
                return
        else:
            yield from zip(futures, map(Value, results), strict=True)
            return
        for future in futures:
            if future.status == DONE:
                yield from self._fetch([future], FETCH_ONE_S)
            else:
                yield future, None

    def _end(self, future: DaskFuture, outcome: Outcome[object]) -> None:
        with self._changed:
            found = self._calls.pop(future.key, None)
        if found is not None:
            call, _, on_end = found
            on_end(call, outcome)

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            found, self._calls = list(self._calls.values()), {}
        for call, _, on_end in found:
            on_end(call, Error(error))

    def cancel(self, calls: Sequence[EngineCall]) -> None:
        """See `EngineAdapter.cancel`."""
        wanted = set(calls)
        with self._changed:
            futures = [future for call, future, _ in self._calls.values() if call in wanted]
        if futures:
            self._client.cancel(futures)

    def why_waiting(self) -> str:
        """See `EngineAdapter.why_waiting`."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        found = cast("Mapping[str, Mapping[str, Mapping[str, float]]]", workers)
        if not found:
            return "the Dask cluster has no workers"
        wanted = cast("dict[str, float]", _dask_resources(self._resources).get("resources", {}))
        for worker in found.values():
            has = worker.get("resources", {})
            if all(has.get(name, 0) >= amount for name, amount in wanted.items()):
                return ""
        texts = " ".join(f"{name}={amount:g}" for name, amount in wanted.items())
        return f"no worker of the Dask cluster was started with --resources '{texts}' or more"

    def close(self) -> None:
        """See `EngineAdapter.close`.  A client of the caller stays connected."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._owned.close()


def _outcome_of(future: DaskFuture, error: Exception, limit_s: float) -> Outcome[object] | None:
    """How the fetch of one result has ended that raised; None: it is being computed again."""
    if not isinstance(error, TimeoutError):
        return Error(error)
    if future.status != DONE:
        return None
    return Error(EngineLostError(f"its result has not arrived within {limit_s:g} s"))


def _dask_resources(resources: Resources) -> dict[str, object]:
    """The resources as an option of ``Client.map``: workers declare them under these names."""
    amounts = {"CPU": resources.cpus, "GPU": resources.gpus, "MEMORY": resources.memory_bytes}
    wanted = {name: amount for name, amount in amounts.items() if amount}
    return {"resources": wanted} if wanted else {}


def open_dask(
    address: str | None,
    workers: int | None,
    slots: int,
    resources: Resources,
    options: Mapping[str, object],
) -> DaskAdapter:
    """Connect to a scheduler, or start a cluster on this machine.

    Args:
        address: The address of the scheduler; None: start a cluster.
        workers: How many processes the cluster has; None: as Dask decides.
        slots: How many items each of them runs at a time.
        resources: What each item needs.
        options: Further arguments of ``Client.map``.

    Raises:
        EngineLostError: the scheduler does not answer.
        MissingExtraError: Dask is not installed.
    """
    distributed, owned = _distributed(), ExitStack()
    try:
        if address is None:
            cluster = _open_cluster(owned, workers, slots, resources)
            client = distributed.Client(cluster, set_as_default=False)
        else:
            client = _connect(address)
        owned.callback(client.close, timeout=CLOSE_S)
        return DaskAdapter(client, resources, options, owned)
    except BaseException:
        owned.close()
        raise


def _connect(address: str) -> DaskClient:
    try:
        return _distributed().Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineLostError(f"no Dask scheduler answers at {address}: {error}") from error


def _open_cluster(
    owned: ExitStack, workers: int | None, slots: int, resources: Resources
) -> _Cluster:
    """Start a cluster on this machine, which a stack ends; it has settings of its own."""
    declared = cast("dict[str, float]", _dask_resources(resources).get("resources", {}))
    config = cast("_Config", importlib.import_module("dask.config"))
    owned.enter_context(config.set(_SETTINGS))
    cluster = _distributed().LocalCluster(
        n_workers=workers,
        threads_per_worker=slots,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        resources={name: amount * slots for name, amount in declared.items()},
    )
    owned.callback(cluster.close, timeout=CLOSE_S)
    return cluster
