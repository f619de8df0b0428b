"""A request is sent again until its outcome is known, and what must be made once is made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from trio_ckpt._buckets.bucket import (
    Bucket,
    KeyTakenError,
    NoAnswerError,
    RefusedError,
    StoredObject,
    memory_bucket,
)
from trio_ckpt._buckets.requests import Requests
from trio_ckpt._util.errors import SaveOutcomeUnknownError

T = TypeVar("T")


class ScriptedBucket(Bucket):
    """A bucket in memory whose next requests go as a list says; then all is well."""

    def __init__(self, *script: str) -> None:
        memory = memory_bucket()
        super().__init__("memory", memory._clients)
        self.script = list(script)

    def _play(self, send: Callable[[], T]) -> T:
        step = self.script.pop(0) if self.script else "fine"
        if step == "fine":
            return send()
        if step == "lost":
            send()
        if step == "409":
            raise KeyTakenError("busy")
        if step == "403":
            raise RefusedError("403 Forbidden")
        raise NoAnswerError(step)

    def create(self, key: str, data: bytes) -> str:
        return self._play(lambda: super(ScriptedBucket, self).create(key, data))

    def replace(self, old: StoredObject, data: bytes) -> str:
        return self._play(lambda: super(ScriptedBucket, self).replace(old, data))

    def put(self, key: str, data: bytes) -> None:
        self._play(lambda: super(ScriptedBucket, self).put(key, data))


def asking(bucket: Bucket, retry_s: float = 25.0) -> Requests:
    return Requests(bucket, retry_s, pause=lambda _: None)


@pytest.mark.parametrize(
    "script", [["fine"], ["500"], ["lost"], ["409"], ["500", "409", "lost"], ["lost", "lost"]]
)
def test_what_is_created_is_its_own_whatever_is_answered(script: list[str]) -> None:
    bucket = ScriptedBucket(*script)
    assert asking(bucket).create("key", b"mine")
    assert bucket.get("key") == b"mine"


@pytest.mark.parametrize("script", [["fine"], ["500"], ["409"]])
def test_what_another_process_created_is_told_from_it(script: list[str]) -> None:
    bucket = ScriptedBucket()
    bucket.create("key", b"theirs")
    bucket.script = script
    assert not asking(bucket).create("key", b"mine")
    assert bucket.get("key") == b"theirs"


def test_a_refusal_is_believed_while_nothing_is_unknown() -> None:
    with pytest.raises(RefusedError):
        asking(ScriptedBucket("403")).create("key", b"mine")
    with pytest.raises(RefusedError):
        asking(ScriptedBucket("409", "403")).create("key", b"mine")


def test_a_refusal_behind_a_lost_answer_says_nothing() -> None:
    bucket = ScriptedBucket("lost", "403")
    assert asking(bucket).create("key", b"mine")
    with pytest.raises(SaveOutcomeUnknownError, match="its outcome is unknown"):
        asking(ScriptedBucket("late", "403"), retry_s=0).create("key", b"mine")


def test_no_answer_in_time_is_an_unknown_outcome() -> None:
    with pytest.raises(SaveOutcomeUnknownError, match="no answer for 0 s to what was to be"):
        asking(ScriptedBucket("500"), retry_s=0).create("key", b"mine")


def test_other_requests_are_repeated_and_then_fail() -> None:
    bucket = ScriptedBucket("500", "lost")
    requests = asking(bucket)
    requests.put("key", b"x")
    assert requests.counts["PUT"] == 3
    with pytest.raises(NoAnswerError):
        asking(ScriptedBucket("500"), retry_s=0).put("key", b"x")


def test_a_long_list_is_read_in_pages() -> None:
    bucket = memory_bucket()
    for number in range(2_500):
        bucket.put(f"folder/{number:05}", b"")
    requests = asking(bucket)
    assert len(requests.list_all("folder")) == 2_500
    assert requests.counts["LIST"] == 3
    assert [one.key for one in requests.list_all("folder", "folder/02497")] == [
        "folder/02498",
        "folder/02499",
    ]
