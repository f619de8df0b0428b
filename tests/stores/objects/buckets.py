"""Buckets in memory whose clock is virtual, whose requests fail, and that run others in between.

Owners are driven without trio here: each is a plain object that blocks, so thousands of schedules
take seconds, and each can be run again by its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

import attrs
import trio

from trio_ckpt._buckets.bucket import (
    Bucket,
    KeyTakenError,
    NoAnswerError,
    StoredObject,
    memory_bucket,
)
from trio_ckpt._buckets.clock import StoreClock
from trio_ckpt._buckets.requests import Requests
from trio_ckpt._util.errors import SaveOutcomeUnknownError, StoreConflictError
from trio_ckpt._util.threads import WorkerThread
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores._objects.layout import RunKeys, StoreKeys
from trio_ckpt.stores._objects.merge import merge, merge_if_due
from trio_ckpt.stores._objects.owning import OwnedLog, take
from trio_ckpt.stores._objects.read import read_run
from trio_ckpt.stores._objects.save import save_group

STREAM = '["s"]'
LEASE_S = 60.0
T = TypeVar("T")
KEYS = StoreKeys("")


class Ticking(Protocol):
    """A clock."""

    def current_time(self) -> float:
        """What it says, in seconds."""
        ...


@attrs.define
class HandClock:
    """A clock that a test moves."""

    now: float = 0.0

    def current_time(self) -> float:
        return self.now


def nothing(_verb: str, _key: str) -> None:
    """Do nothing before a request."""


class KilledError(BaseException):
    """What a process that is killed does not see."""


class ClockedBucket(Bucket):
    """A bucket that is ahead by what a virtual clock says; `before` is called first.

    It is in memory, or a real one.
    """

    def __init__(self, clock: Ticking, real: Bucket | None = None) -> None:
        of = memory_bucket() if real is None else real
        super().__init__(of.shown, of._clients)
        self.clock = clock
        self.times: dict[str, datetime] = {}
        self.before: Callable[[str, str], None] = nothing

    def _stamp(self, key: str) -> None:
        self.times[key] = datetime.now(UTC) + timedelta(seconds=self.clock.current_time())

    def _at_its_time(self, found: StoredObject) -> StoredObject:
        return attrs.evolve(found, modified=self.times.get(found.key, found.modified))

    def create(self, key: str, data: bytes) -> str:
        self.before("create", key)
        etag = super().create(key, data)
        self._stamp(key)
        return etag

    def replace(self, old: StoredObject, data: bytes) -> str:
        self.before("replace", old.key)
        etag = super().replace(old, data)
        self._stamp(old.key)
        return etag

    def put(self, key: str, data: bytes) -> None:
        self.before("put", key)
        super().put(key, data)
        self._stamp(key)

    def upload(self, key: str, views: Iterable[memoryview]) -> None:
        self.before("put", key)
        super().upload(key, views)
        self._stamp(key)

    def compare(self, key: str, data: bytes) -> tuple[StoredObject, bool] | None:
        self.before("get", key)
        found = super().compare(key, data)
        return found and (self._at_its_time(found[0]), found[1])

    def get(self, key: str) -> bytes | None:
        self.before("get", key)
        return super().get(key)

    def get_range(self, key: str, offset: int, size: int) -> bytes | None:
        self.before("get", key)
        return super().get_range(key, offset, size)

    def find(self, key: str) -> StoredObject | None:
        self.before("find", key)
        found = super().find(key)
        return None if found is None else self._at_its_time(found)

    def list(self, folder: str, after: str | None = None) -> Iterator[StoredObject]:
        self.before("list", folder)
        for found in super().list(folder, after):
            yield self._at_its_time(found)

    def delete(self, keys: Sequence[str]) -> None:
        self.before("delete", keys[0])
        super().delete(keys)

    def copy(self, source: str, target: str) -> None:
        self.before("copy", source)
        super().copy(source, target)
        self._stamp(target)


@attrs.define
class Kill:
    """A process is killed before a request, and asks for nothing after it.

    Attributes:
        left: How many requests it still makes.
        is_done: Whether it has been killed.
    """

    left: int
    is_done: bool = False

    def __call__(self, _verb: str, _key: str) -> None:
        self.left -= 1
        self.is_done = self.is_done or self.left < 0
        if self.is_done:
            raise KilledError


@contextmanager
def killed_before(bucket: ClockedBucket, request: int) -> Generator[Kill]:
    """Run the block as a process that is killed before a request of a bucket, 0 for the first."""
    bucket.before = kill = Kill(request)
    try:
        yield kill
    except BaseException as error:
        if not kill.is_done or isinstance(error, trio.Cancelled):
            raise
    finally:
        bucket.before = nothing


class FaultyBucket(ClockedBucket):
    """A bucket whose requests fail by chance: lost answers, 409, 500, and copies that land late."""

    def __init__(self, clock: Ticking, chance: random.Random, rate: float = 0.25) -> None:
        super().__init__(clock)
        self._chance = chance
        self.rate = rate
        self.late: list[Callable[[], object]] = []

    def create(self, key: str, data: bytes) -> str:
        return self._change(lambda: super(FaultyBucket, self).create(key, data), is_create=True)

    def replace(self, old: StoredObject, data: bytes) -> str:
        return self._change(lambda: super(FaultyBucket, self).replace(old, data), is_create=True)

    def put(self, key: str, data: bytes) -> None:
        self._change(lambda: super(FaultyBucket, self).put(key, data))

    def delete(self, keys: Sequence[str]) -> None:
        self._change(lambda: super(FaultyBucket, self).delete(keys))

    def get(self, key: str) -> bytes | None:
        self._fail("500")
        return super().get(key)

    def compare(self, key: str, data: bytes) -> tuple[StoredObject, bool] | None:
        self._fail("500")
        return super().compare(key, data)

    def list(self, folder: str, after: str | None = None) -> Iterator[StoredObject]:
        self._fail("500")
        return super().list(folder, after)

    def _fail(self, why: str) -> None:
        if self._chance.random() < self.rate:
            raise NoAnswerError(why)

    def _change(self, send: Callable[[], T], *, is_create: bool = False) -> T:
        self.land_some()
        if self._chance.random() >= self.rate:
            return send()
        kind = self._chance.choice(["500", "lost", "late", *(["409"] if is_create else [])])
        if kind == "409":
            raise KeyTakenError("another write goes on")
        if kind == "lost":
            send()
        elif kind == "late":
            self.late.append(send)
        raise NoAnswerError(kind)

    def land_some(self) -> None:
        """Let copies of earlier requests arrive."""
        for send in [one for one in self.late if self._chance.random() < 0.2]:
            self.late.remove(send)
            with suppress(KeyTakenError):
                send()

    def heal(self) -> None:
        """Answer everything from now on; what is under way arrives."""
        self.rate = 0.0
        while self.late:
            self.land_some()


@attrs.define(eq=False)
class Process:
    """A process that may own the run, and what was confirmed to it."""

    requests: Requests
    clock: StoreClock
    owned: OwnedLog | None = None
    confirmed: list[bytes] = attrs.field(factory=list[bytes])
    unknown: list[bytes] = attrs.field(factory=list[bytes])
    saved: int = 0

    @classmethod
    def on(cls, bucket: ClockedBucket) -> Process:
        clock = StoreClock(bucket.clock, is_measured=True)  # type: ignore[arg-type]
        return cls(Requests(bucket, pause=lambda _: None), clock)

    def take(self) -> int:
        """Lock the run; its number, which is in each payload."""
        self.owned = take(self.requests, KEYS, self.clock, "run", LEASE_S, WorkerThread("test"))
        return self.owned.owner

    def save(self, count: int = 1) -> bool:
        """Save one group; whether it was confirmed, else it does not have the run."""
        owned = self.owned
        assert owned is not None
        newest = owned.loaded.state.newest
        head = None if newest is None else newest.heads.get(STREAM)
        start = 0 if head is None else head.sequence
        group = list[Checkpoint]()
        for place in range(1, count + 1):
            self.saved += 1
            payload = b"%d.%d" % (owned.owner, self.saved)
            group.append(Checkpoint(STREAM, start + place, payload))
        key = RunKey("run", 0, owned.owner)
        payloads = [one.payload for one in group]
        try:
            outcomes = save_group(self.requests, self.clock, owned, key, group, (), None)
        except StoreConflictError:
            self.owned = None
            return False
        except SaveOutcomeUnknownError:
            self.owned = None
            self.unknown += payloads
            return False
        merge_if_due(self.requests, owned)
        assert outcomes == [None] * count
        self.confirmed += payloads
        return True

    def merge(self) -> None:
        """Merge what there is."""
        assert self.owned is not None
        merge(self.requests, self.owned)


def run_keys() -> RunKeys:
    return KEYS.run("run")


def payloads_in(bucket: Bucket) -> list[bytes]:
    """The records of the run, oldest first."""
    stored = read_run(Requests(bucket, pause=lambda _: None), run_keys(), None)
    if stored is None or not stored.streams:
        return []
    (stream,) = stored.streams
    assert [record.sequence for record in stream.tail] == list(range(1, stream.sequence + 1))
    return [record.payload for record in stream.tail]


def check_confirmed(bucket: Bucket, *processes: Process) -> None:
    """Each record that was confirmed is there once; nothing is there twice."""
    found = payloads_in(bucket)
    assert len(set(found)) == len(found), "a record is there twice"
    for process in processes:
        missing = [payload for payload in process.confirmed if payload not in found]
        assert not missing, f"confirmed, and not there: {missing}"
        order = [payload for payload in found if payload in set(process.confirmed)]
        assert order == process.confirmed, "the order is another one"
