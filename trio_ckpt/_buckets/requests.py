"""Requests that are sent again until their outcome is known.

Theory of operation.  A read is sent again as it is.  So is a PUT of a key that no other writer
uses, and a DELETE of an object that is never made again: however many copies land, the end is the
same.

A PUT that must create is different, because it decides who owns a run and what was saved.  Where
its answer is lost the same PUT is sent again, and one of two answers comes: it is created now, or
there is an object.  That object is read: equal bytes are its own, which an earlier copy has
created; any others are those of another process.  A refusal says that nothing was created only as
long as no copy before it is without an answer.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar

import attrs

from .._util.errors import SaveOutcomeUnknownError
from .._util.log import get_logger
from .bucket import (
    LIST_AT_ONCE,
    Bucket,
    KeyTakenError,
    NoAnswerError,
    RefusedError,
    StoredObject,
    in_batches,
)

logger = get_logger(__name__)

T = TypeVar("T")

RETRY_S = 25.0  # for how long a server that does not answer is asked again
RETRY_SHARE = 5 / 12  # of the lease: with the last copy's time it ends before the lease is lost
OPENING_S = 3.0  # likewise while a store is opened, where a typo is likelier than a fault
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


def retry_s_of(lease_s: float) -> float:
    """For how long a request of an owner with a lease is sent again, in seconds."""
    return min(RETRY_S, lease_s * RETRY_SHARE)


@attrs.define(eq=False)
class Requests:
    """A bucket, asked until it answers.  Methods block.

    Attributes:
        bucket: The bucket.
        retry_s: For how long a request is sent again, in seconds.
        pause: Waits between two copies, for so many seconds.
        counts: How many requests of each kind were sent.
        ends_at: From when on no request is begun, on the clock of `time.monotonic`.
    """

    bucket: Bucket
    retry_s: float = RETRY_S
    pause: Callable[[float], None] = time.sleep
    counts: Counter[str] = attrs.field(factory=Counter[str])
    ends_at: float = math.inf

    def within(self, retry_s: float, all_s: float = math.inf) -> Requests:
        """These requests, with other limits.

        Args:
            retry_s: For how long a request is sent again, in seconds.
            all_s: For how long requests are begun, in seconds from now; then they are refused.
        """
        return attrs.evolve(self, retry_s=retry_s, ends_at=time.monotonic() + all_s)

    def _check_time(self) -> None:
        if time.monotonic() >= self.ends_at:
            raise RefusedError(f"{self.bucket.shown}: the time for these requests is over")

    def create(self, key: str, data: bytes) -> bool:
        """Put an object that must not exist, once, however often it is sent.

        Returns:
            Whether the object has these bytes; False: it has others, of another process.

        Raises:
            RefusedError: it was not created, and no copy can create it any more.
            SaveOutcomeUnknownError: it may have been created, or may be yet.
        """
        return self.write(key, data) is not None

    def write(self, key: str, data: bytes, old: StoredObject | None = None) -> str | None:
        """Put an object that must not exist, or that must be as it was found, once.

        Args:
            key: Its key.
            data: Its content.
            old: What it is written in place of; None: it must not exist.

        Returns:
            The ETag of the object, which has these bytes; None: it is not as it was expected to
            be, and has others.

        Raises:
            RefusedError: it was not written, and no copy can write it any more.
            SaveOutcomeUnknownError: it may have been written, or may be yet.
        """
        self._check_time()
        send = partial(self.bucket.create, key, data)
        if old is not None:
            send = partial(self.bucket.replace, old, data)
        until, pause_s = time.monotonic() + self.retry_s, FIRST_PAUSE_S
        is_sure = True  # whether each copy so far has changed nothing
        while True:
            try:
                self.counts["PUT"] += 1
                return send()
            except KeyTakenError as taken:
                problem: Exception = taken
                found = self._read_taken(key, data)
                if found is not None:
                    there, is_same = found
                    if is_same:
                        return there.etag
                    if old is None or there.etag != old.etag:
                        return None
                    send = partial(self._overwrite, key, data)  # the server compares no ETags
            except RefusedError as error:
                if is_sure:
                    raise
                problem = error
            except NoAnswerError as error:
                is_sure, problem = False, error
            if time.monotonic() >= until:
                raise SaveOutcomeUnknownError(
                    f"{self.bucket.shown}: no answer for {self.retry_s:g} s to what was to be "
                    f"created as {key}, so its outcome is unknown: {problem}"
                ) from problem
            logger.warning("%s: it is sent again: %s", self.bucket.shown, problem)
            self.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _overwrite(self, key: str, data: bytes) -> str:
        self.bucket.put(key, data)
        found = self.find(key)
        return "" if found is None else found.etag

    def _read_taken(self, key: str, data: bytes) -> tuple[StoredObject, bool] | None:
        """Compare what is said to be there; None: it is not, or not yet."""
        self.counts["GET"] += 1
        try:
            return self.bucket.compare(key, data)
        except (NoAnswerError, RefusedError) as error:
            logger.warning("%s", error)
            return None

    def compare(self, key: str, data: bytes) -> tuple[StoredObject, bool] | None:
        """Look at an object, and whether it has these bytes; None: there is none."""
        return self._repeat("GET", partial(self.bucket.compare, key, data))

    def put(self, key: str, data: bytes) -> None:
        """Put an object whose key no other writer uses."""
        self._repeat("PUT", partial(self.bucket.put, key, data))

    def get(self, key: str) -> bytes | None:
        """Read a whole object; None: there is none."""
        return self._repeat("GET", partial(self.bucket.get, key))

    def get_range(self, key: str, offset: int, size: int) -> bytes | None:
        """Read a part of an object, maybe a shorter one; None: there is no such object."""
        return self._repeat("GET", partial(self.bucket.get_range, key, offset, size))

    def peek(self, key: str, size: int) -> bytes | None:
        """Read the beginning of an object that is small; None: there is none."""
        return self._repeat("GET", partial(self.bucket.peek, key, size))

    def find(self, key: str) -> StoredObject | None:
        """Look at an object without reading it; None: there is none."""
        return self._repeat("GET", partial(self.bucket.find, key))

    def list_all(self, folder: str, after: str | None = None) -> list[StoredObject]:
        """List the objects of a folder, in the order of their keys."""
        return list(self.iterate(folder, after))

    def iterate(self, folder: str, after: str | None = None) -> Iterator[StoredObject]:
        """List the objects of a folder as they are needed, in the order of their keys."""
        last = after
        while True:
            count = 0
            for entry in self._repeat("LIST", partial(self._some, folder, last)):
                yield entry
                last, count = entry.key, count + 1
            if count < LIST_AT_ONCE:
                return

    def _some(self, folder: str, after: str | None) -> list[StoredObject]:
        return list(islice(self.bucket.list(folder, after), LIST_AT_ONCE))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects that are never made again."""
        for batch in in_batches(keys):
            self._repeat("DELETE", partial(self.bucket.delete, batch))

    def copy(self, source: str, target: str) -> None:
        """Copy an object to a key that no other writer uses."""
        self._repeat("PUT", partial(self.bucket.copy, source, target))

    def _repeat(self, kind: str, send: Callable[[], T]) -> T:
        self._check_time()
        until, pause_s = time.monotonic() + self.retry_s, FIRST_PAUSE_S
        while True:
            self.counts[kind] += 1
            try:
                return send()
            except NoAnswerError as error:
                if time.monotonic() >= until:
                    raise
                logger.warning("%s: it is sent again: %s", self.bucket.shown, error)
            self.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
