"""Outputs in a bucket: no answer and no other writer makes one overwrite another."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

if importlib.util.find_spec("obstore") is None:
    pytest.skip(
        "obstore is not installed: pip install 'trio-ckpt[objects]'", allow_module_level=True
    )

from tests.outputs.buckets import URL, in_memory
from tests.stores.objects.buckets import ClockedBucket, FaultyBucket, HandClock
from tests.stores.objects.conftest import s3_server as s3_server, s3_url as s3_url
from trio_ckpt import ForkedProcessError, OutputError
from trio_ckpt._buckets.bucket import (
    Bucket,
    KeyTakenError,
    RefusedError,
    StoredObject,
    memory_bucket,
)
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.outputs import OutputPathError, open_outputs, place_below
from trio_ckpt.outputs._objects import LABEL_BYTES, MAX_KEY_BYTES


def content(bucket: Bucket, name: str) -> bytes | None:
    return bucket.get(f"out/{name}")


@pytest.mark.parametrize("seed", range(300))
def test_a_write_lands_once_or_says_that_it_is_unknown(seed: int) -> None:
    """Answers are lost, copies land late; a content that was confirmed is there in the end."""
    chance = random.Random(seed)
    bucket = FaultyBucket(HandClock(), chance, rate=0)
    outputs = in_memory(bucket)
    bucket.rate = 0.3
    confirmed = dict[str, bytes]()
    for number in range(8):
        name, data = f"{chance.randrange(4)}", b"%d" % number
        try:
            if name in confirmed:
                outputs.set_aside(name, "test")
                confirmed[name] = b"?"  # until it is answered
            outputs.write(name, data, is_new=name not in confirmed)
        except OutputError:
            confirmed.pop(name, None)
        else:
            confirmed[name] = data
    bucket.heal()
    for name, data in confirmed.items():
        assert content(bucket, name) == data, (seed, name)


def test_an_equal_object_is_taken_as_it_is() -> None:
    """An attempt that was killed before its record has left it."""
    bucket = ClockedBucket(HandClock())
    left = in_memory(bucket).write("a", b"content", is_new=True)
    puts = list[str]()
    outputs = in_memory(bucket)
    bucket.before = lambda verb, _key: puts.append(verb)
    assert outputs.write("a", b"content", is_new=True) == left
    assert puts == ["create", "get"]


def test_what_another_process_writes_meanwhile_is_not_replaced() -> None:
    bucket = ClockedBucket(HandClock())
    outputs, heir = in_memory(bucket), in_memory(bucket)
    outputs.write("a", b"old")

    def take_over(verb: str, _key: str) -> None:
        if verb == "replace":
            bucket.before = lambda _verb, _key: None
            heir.write("a", b"of the heir")

    bucket.before = take_over
    with pytest.raises(OutputError, match="another process has written it meanwhile"):
        outputs.write("a", b"late")
    assert content(bucket, "a") == b"of the heir"


class UnquotedBucket(ClockedBucket):
    """A server that refuses each If-Match, also a right one: Ceph 16 is one."""

    def replace(self, old: StoredObject, data: bytes) -> str:
        self.before("replace", old.key)
        raise KeyTakenError(old.key)


def test_a_server_that_compares_no_etags_gets_a_plain_put() -> None:
    bucket = UnquotedBucket(HandClock())
    outputs = in_memory(bucket)
    outputs.write("a", b"old")
    written = outputs.write("a", b"new")
    assert content(bucket, "a") == b"new"
    assert outputs.check(written) is None


def test_an_interrupted_move_is_repeated_without_a_second_copy(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = open_outputs(s3_url)
    outputs.write("a", b"content")

    def stop(_requests: Requests, _keys: Iterable[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Requests, "delete", stop)
        with pytest.raises(KeyboardInterrupt):
            outputs.archive(["a"], "run")
    assert outputs.read("a", 100) == b"content", "it is copied before it is removed"
    assert outputs.archive(["a"], "run").moved == {"a": ".archive/run/a"}
    assert outputs.length("a") is None


# -- what is refused ---------------------------------------------------------------------------


class BlindOutputs(ClockedBucket):
    """A server that does not know If-None-Match."""

    def create(self, key: str, data: bytes) -> str:
        self.put(key, data)
        return ""


class ClosedBucket(ClockedBucket):
    """A bucket that this user may not write to."""

    def create(self, key: str, data: bytes) -> str:
        raise RefusedError("403 Forbidden")


def test_a_bucket_that_cannot_be_used_is_refused_at_once() -> None:
    with pytest.raises(OutputError, match="does not honour If-None-Match"):
        in_memory(BlindOutputs(HandClock()))
    with pytest.raises(OutputError, match="403 Forbidden"):
        in_memory(ClosedBucket(HandClock()))


def test_a_server_says_why_it_refuses(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"NoSuchBucket|no such bucket"):
        open_outputs(s3_url.replace("ckpt-tests", "none-of-this-name"))
    with pytest.raises(OutputError, match=r"NoSuchBucket|no such bucket"):
        open_outputs(s3_url.replace("ckpt-tests", "none-of-this-name"), is_read_only=True)
    monkeypatch.setattr("trio_ckpt.outputs._objects.OPENING_S", 0.0)
    with pytest.raises(OutputError, match="no answer for 0 s"):
        open_outputs("s3://bucket/out?endpoint=http://127.0.0.1:9&region=us-east-1")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s4://bucket/out", r"did you mean s3://\?"),
        ("S3://bucket/out", r"did you mean s3://\?"),
        ("s3:bucket/out", r"did you mean s3://\?"),
        (Path("s3://bucket/out"), "given as a str"),
        ("https://bucket/out", "is not the URL of a bucket"),
        ("sqlite://out", "is not the URL of a bucket"),
        ("s3://Bucket/out", "'Bucket' is not the name of a bucket"),
        ("s3://bucket/out?regoin=eu", "did you mean 'region'"),
        ("s3://bucket/out?lease_s=5", "there is no option 'lease_s'"),
        ("s3://key:secret@bucket/out", "credentials do not belong in it"),
        ("file://out", "three slashes"),
    ],
)
def test_a_url_with_a_typo_is_refused(url: str | Path, why: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=why) as caught:
        open_outputs(url)
    assert "secret" not in str(caught.value)


def test_a_folder_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    for name in ("run:1", "sqlite:x"):
        outputs = open_outputs(f"{tmp_path}/{name}")
        outputs.write("a", b"x")
        outputs.close()
        assert (tmp_path / name / "a").read_bytes() == b"x"


def test_outputs_do_not_go_into_the_store() -> None:
    outputs = in_memory()
    with pytest.raises(OutputError, match="is the place of the store, too"):
        outputs.keep_out(f"{URL}?lease_s=5")
    for other in ("s3://another/out", "gs://bucket/out", "/a/folder", "memory:"):
        outputs.keep_out(other)
    outputs.keep_out("s3://bucket/out/ckpt")
    with pytest.raises(OutputError, match="is within the store"):
        outputs.write("ckpt/runs/x", b"")
    outputs.write("ckpt/mine", b"")
    inner = in_memory(url="s3://bucket/ckpt/runs")
    inner.keep_out("s3://bucket/ckpt")
    with pytest.raises(OutputError, match="is within the store"):
        inner.write("x", b"")


def test_a_key_that_no_provider_takes_is_refused() -> None:
    outputs = in_memory()
    with pytest.raises(OutputPathError, match="its key has 1,0"):
        outputs.write("é" * 511, b"")
    outputs.write("é" * 510, b"")


def test_what_is_written_has_room_in_the_archive() -> None:
    """Else its batch could not be done again."""
    bucket = ClockedBucket(HandClock())
    outputs, run_id = in_memory(bucket), "é" * 200
    outputs.belong_to(run_id, 1, is_shared=False)
    longest = MAX_KEY_BYTES - len(f"out/.archive/{run_id}".encode()) - LABEL_BYTES
    with pytest.raises(OutputPathError, match="of 1,024 are for its place in the archive"):
        outputs.write("x" * (longest + 1), b"")
    for number in range(9):
        outputs.write("x" * longest, b"%d" % number)
        outputs.set_aside("x" * longest, f"{run_id}-unconfirmed")
        outputs.archive(["x" * longest], f"{run_id}-1234567890-redo")
    keys = [one.key for one in bucket.list("out")]
    assert len(keys) == 18
    assert max(len(key.encode()) for key in keys) <= MAX_KEY_BYTES


def test_an_object_that_was_replaced_while_it_was_read_is_refused() -> None:
    bucket = ClockedBucket(HandClock())
    outputs = in_memory(bucket)
    outputs.write("a", b"by hand")
    finds = list[str]()

    def change(verb: str, _key: str) -> None:
        finds.append(verb)
        if finds.count("find") == 2:
            bucket.before = lambda _verb, _key: None
            outputs.write("a", b"changed")

    bucket.before = change
    with pytest.raises(OutputError, match="was replaced while it was hashed"):
        outputs.adopt("a")


def test_a_place_below_another_keeps_its_options() -> None:
    assert place_below("s3://bucket/out?region=eu", "a.1") == "s3://bucket/out/a.1?region=eu"
    assert place_below("s3://bucket", "a") == "s3://bucket/a"
    assert place_below("data", "a") == "data/a"


def test_a_bucket_answers_only_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = in_memory()
    monkeypatch.setattr("trio_ckpt._util.forks._generation", -1)
    with pytest.raises(ForkedProcessError):
        outputs.write("a", b"")


def test_memory_needs_no_prefix() -> None:
    outputs = in_memory(memory_bucket(), "s3://bucket")
    outputs.write("a/b", b"x")
    assert (outputs.names(), outputs.count(5), outputs.root) == (["a"], 1, "s3://bucket")
