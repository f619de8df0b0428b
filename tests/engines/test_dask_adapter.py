"""The adapter of Dask beside a client that fails: each call ends, and none for another one."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

import attrs
import pytest
from outcome import Error, Outcome, Value

from tests.hangs import HANG_S
from trio_ckpt.engines import EngineLostError, Resources, _dask
from trio_ckpt.engines._dask import DaskAdapter, DaskClient, open_dask
from trio_ckpt.engines._engine import EngineCall

distributed: Any = pytest.importorskip("distributed", reason="the extra dask is not installed")
dask: Any = pytest.importorskip("dask", reason="the extra dask is not installed")

Gather = Callable[["list[FakeFuture]"], "list[object]"]


@attrs.define(eq=False)
class FakeFuture:
    key: str
    status: str = "finished"

    def exception(self) -> BaseException | None:
        return None


@attrs.define(eq=False)
class FakeClient:
    """A client all of whose futures are done at once."""

    fetch: Gather
    loop: None = None
    gathered: list[list[str]] = attrs.field(factory=list[list[str]])
    limits: list[float] = attrs.field(factory=list[float])

    def map(self, _func: object, _specs: object, *, key: list[str], **_: object) -> list[Any]:
        return [FakeFuture(name) for name in key]

    async def gather(self, futures: list[FakeFuture], *, asynchronous: bool) -> list[object]:
        assert asynchronous
        self.gathered.append([future.key for future in futures])
        return self.fetch(futures)

    def sync(
        self, func: Callable[[], Coroutine[None, None, list[object]]], *, callback_timeout: float
    ) -> list[object]:
        self.limits.append(callback_timeout)
        try:
            func().send(None)
        except StopIteration as result:
            return cast("list[object]", result.value)
        raise AssertionError("it has waited")


@attrs.define(eq=False)
class FakeCompleted:
    """What ``distributed.as_completed`` is: futures that are done, each once."""

    ready: list[FakeFuture] = attrs.field(factory=list[FakeFuture])
    cleared: queue.SimpleQueue[None] = attrs.field(factory=queue.SimpleQueue[None])
    change: Callable[[list[FakeFuture]], None] = lambda _futures: None

    def update(self, futures: Iterable[FakeFuture]) -> None:
        self.ready += futures

    def next_batch(self, block: bool) -> list[FakeFuture]:
        assert not block, "a thread that waits here does not see that the adapter is closed"
        batch, self.ready = self.ready, []
        self.change(batch)
        return batch

    def clear(self) -> None:
        self.cleared.put(None)


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> FakeCompleted:
    found = FakeCompleted()

    class Module:
        def as_completed(self, **_: object) -> FakeCompleted:
            return found

    monkeypatch.setattr(_dask, "_distributed", Module)
    return found


def ends_of(fetch: Gather, completed: FakeCompleted) -> tuple[dict[str, Outcome[object]], Any]:
    """Submit a, b and c; return how each of them ends, and the client."""
    client, ended = FakeClient(fetch), queue.SimpleQueue[tuple[str, Outcome[object]]]()
    adapter = DaskAdapter(cast("DaskClient", client), Resources(), {})
    calls = [EngineCall(key, cast("Any", b""), cast("Any", None)) for key in "abc"]
    adapter.submit(calls, lambda call, outcome: ended.put((call.key, outcome)))
    found = [ended.get(timeout=HANG_S) for _ in calls]
    adapter.close()
    completed.cleared.get(timeout=HANG_S)
    assert ended.empty(), "a call has ended twice"
    return dict(found), client


def values(futures: list[FakeFuture]) -> list[object]:
    return [future.key.upper() for future in futures]


def test_a_future_that_is_lost_meanwhile_ends_its_call(completed: FakeCompleted) -> None:
    """It is lost when it is looked at, and computed again while the others are fetched."""
    futures = list[FakeFuture]()

    def lose(batch: list[FakeFuture]) -> None:
        futures.extend(batch)
        for future in batch[:1]:
            future.status = "lost"

    def fetch(batch: list[FakeFuture]) -> list[object]:
        futures[0].status = "finished"
        return values(batch)

    completed.change = lose
    found, _ = ends_of(fetch, completed)
    assert isinstance(found["a"], Error)
    assert str(found["a"].error) == "Dask says that it is lost"
    assert (found["b"], found["c"]) == (Value("B"), Value("C"))


def test_one_result_that_cannot_be_fetched_is_one_loss(completed: FakeCompleted) -> None:
    def fetch(batch: list[FakeFuture]) -> list[object]:
        if any(future.key == "b" for future in batch):
            raise KeyError("its worker is gone")
        return values(batch)

    found, client = ends_of(fetch, completed)
    assert (found["a"], found["c"]) == (Value("A"), Value("C"))
    assert isinstance(found["b"], Error)
    assert Counter(map(len, client.gathered)) == {3: 1, 1: 3}


def test_a_result_that_does_not_arrive_is_a_loss(completed: FakeCompleted) -> None:
    """The others do not wait for it."""

    def fetch(batch: list[FakeFuture]) -> list[object]:
        if any(future.key == "b" for future in batch):
            raise TimeoutError
        return values(batch)

    found, client = ends_of(fetch, completed)
    assert (found["a"], found["c"]) == (Value("A"), Value("C"))
    assert isinstance(found["b"], Error)
    assert str(found["b"].error) == "its result has not arrived within 5 s"
    assert client.limits == [_dask.FETCH_S, *[_dask.FETCH_ONE_S] * 3]


def test_a_result_that_is_computed_again_is_waited_for(completed: FakeCompleted) -> None:
    """The worker that had it was lost before it could be fetched."""
    tries = Counter[str]()

    def fetch(batch: list[FakeFuture]) -> list[object]:
        tries.update(future.key for future in batch)
        if any(future.key == "b" for future in batch) and tries["b"] <= 2:
            for future in batch:
                future.status = "pending" if future.key == "b" else "finished"
            raise TimeoutError
        return values(batch)

    def finish(batch: list[FakeFuture]) -> None:  # no other future is ever given out
        for future in batch:
            future.status = "finished"

    completed.change = finish
    found, _ = ends_of(fetch, completed)
    assert found == {key: Value(key.upper()) for key in "abc"}
    assert tries["b"] == 3


def test_a_result_that_is_given_up_meanwhile_is_not_asked_for(completed: FakeCompleted) -> None:
    """Its worker was lost: many such results would each take the time of one that hangs."""
    lost = list[FakeFuture]()

    def fetch(batch: list[FakeFuture]) -> list[object]:
        if len(batch) == 3:
            lost.append(batch[1])
            batch[1].status = "pending"
            raise TimeoutError
        if batch[0].key == "c":
            lost[0].status = "finished"
        return values(batch)

    found, client = ends_of(fetch, completed)
    assert found == {key: Value(key.upper()) for key in "abc"}
    assert client.gathered == [["a", "b", "c"], ["a"], ["c"], ["b"]]


def test_a_result_that_has_arrived_does_not_wait_for_others(completed: FakeCompleted) -> None:
    ended = queue.SimpleQueue[tuple[str, Outcome[object]]]()
    has_ended, seen = threading.Event(), list[bool]()

    def fetch(batch: list[FakeFuture]) -> list[object]:
        if len(batch) == 3:
            raise TimeoutError
        if batch[0].key == "b":
            seen.append(has_ended.is_set())
        return values(batch)

    def on_end(call: EngineCall, outcome: Outcome[object]) -> None:
        has_ended.set()
        ended.put((call.key, outcome))

    adapter = DaskAdapter(cast("DaskClient", FakeClient(fetch)), Resources(), {})
    calls = [EngineCall(key, cast("Any", b""), cast("Any", None)) for key in "abc"]
    adapter.submit(calls, on_end)
    found = [ended.get(timeout=HANG_S) for _ in calls]
    adapter.close()
    assert found == [(key, Value(key.upper())) for key in "abc"]
    assert seen == [True]


def test_a_thread_that_fails_ends_all_calls(
    completed: FakeCompleted, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(BaseException):
        pass

    def fetch(_batch: list[FakeFuture]) -> list[object]:
        raise Closed("the loop is closed")

    found, _ = ends_of(fetch, completed)
    assert {type(end.error) for end in found.values() if isinstance(end, Error)} == {
        EngineLostError
    }
    assert len(found) == 3
    assert "results of Dask were not fetched: the loop is closed" in caplog.text


def test_a_cluster_that_cannot_begin_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Cluster:
        def __init__(self, **_: object) -> None:
            pass

        def close(self, timeout: float) -> None:
            closed.append("cluster")

    class Module:
        LocalCluster = Cluster

        def Client(self, *_: object, **__: object) -> None:  # noqa: N802
            raise TimeoutError("no answer")

    before = dask.config.get("distributed.deploy.lost-worker-timeout", None)
    monkeypatch.setattr(_dask, "_distributed", Module)
    with pytest.raises(TimeoutError, match="no answer"):
        open_dask(None, 1, 1, Resources(), {})
    assert closed == ["cluster"]
    assert dask.config.get("distributed.deploy.lost-worker-timeout", None) == before
