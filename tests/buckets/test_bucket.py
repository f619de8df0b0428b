"""A bucket in memory, in a folder and on a server: one meaning of each request and each error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from obstore.store import S3Store

from trio_ckpt import StoreError
from trio_ckpt._buckets.address import parse_address
from trio_ckpt._buckets.bucket import (
    Bucket,
    KeyTakenError,
    NoAnswerError,
    RefusedError,
    memory_bucket,
    open_bucket,
)


@pytest.fixture(params=["memory", "folder", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    if request.param == "memory":
        return memory_bucket()
    url = f"file://{tmp_path}/b" if request.param == "folder" else request.getfixturevalue("s3_url")
    return open_bucket(parse_address(url))


def test_objects_are_created_once_read_listed_and_removed(bucket: Bucket) -> None:
    bucket.create("bucket-test/a", b"one")
    with pytest.raises(KeyTakenError):
        bucket.create("bucket-test/a", b"two")
    bucket.put("bucket-test/c", b"three")
    bucket.put("bucket-test/b/x", b"")
    assert bucket.get("bucket-test/a") == b"one"
    assert bucket.get_range("bucket-test/c", 2, 2) == b"re"
    peeked = [bucket.peek(f"bucket-test/{name}", 4) for name in ("a", "c", "b/x", "none")]
    assert peeked == [b"one", b"thre", b"", None]
    found = bucket.find("bucket-test/c")
    assert found is not None
    assert found.size == 5
    listed = [(one.key, one.size) for one in bucket.list("bucket-test")]
    assert listed == [("bucket-test/a", 3), ("bucket-test/b/x", 0), ("bucket-test/c", 5)]
    assert [one.key for one in bucket.list("bucket-test", "bucket-test/b/x")] == ["bucket-test/c"]
    bucket.copy("bucket-test/a", "bucket-test/d")
    bucket.delete(["bucket-test/a", "bucket-test/none", "bucket-test/c", "bucket-test/b/x"])
    assert [one.key for one in bucket.list("bucket-test")] == ["bucket-test/d"]
    bucket.delete(["bucket-test/d"])
    assert bucket.get("bucket-test/a") is None
    assert bucket.get_range("bucket-test/a", 0, 1) is None
    assert bucket.find("bucket-test/a") is None


class _HalfError(Exception):
    """What an iterator of buffers raises."""


def test_an_upload_that_fails_leaves_no_object(bucket: Bucket) -> None:
    part = memoryview(bytes(9 * 2**20))

    def fail() -> Iterator[memoryview]:
        yield part
        raise _HalfError

    with pytest.raises(_HalfError):
        bucket.upload("upload-test/half", fail())
    assert bucket.get("upload-test/half") is None
    bucket.upload("upload-test/whole", iter([part, memoryview(b"end")]))
    found = bucket.find("upload-test/whole")
    assert found is not None
    assert found.size == len(part) + 3


def test_a_server_that_is_not_there_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    there = open_bucket(parse_address("s3://bucket?endpoint=http://127.0.0.1:1&region=x"))
    with pytest.raises(NoAnswerError, match=r"^s3://bucket.*: PUT key: ") as caught:
        there.create("key", b"")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "has_lease", "times"),
    [
        ("&lease_s=30", True, ["10000ms", "10000ms", "300000ms"]),
        ("", True, ["20000ms", "20000ms", "300000ms"]),
        ("&lease_s=600", True, ["20000ms", "200000ms", "300000ms"]),
        ("", False, ["20000ms", "300000ms", "300000ms"]),
    ],
)
def test_what_a_save_may_wait_for_ends_within_its_lease(
    options: str, has_lease: bool, times: list[str]
) -> None:
    url = f"s3://bucket?endpoint=http://127.0.0.1:1&region=x{options}"
    clients = open_bucket(parse_address(url, has_lease=has_lease))._clients
    found = [clients.quick, clients.large, clients.patient]
    assert all(isinstance(client, S3Store) for client in found)
    assert [(client.client_options or {})["timeout"] for client in found] == times  # type: ignore[union-attr]


class Answering(BaseHTTPRequestHandler):
    """A server that answers each PUT with one status."""

    status = HTTPStatus.NOT_IMPLEMENTED

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (HTTPStatus.NOT_IMPLEMENTED, RefusedError),
        (HTTPStatus.BAD_REQUEST, RefusedError),
        (HTTPStatus.SERVICE_UNAVAILABLE, NoAnswerError),
        (HTTPStatus.TOO_MANY_REQUESTS, NoAnswerError),
    ],
)
def test_a_status_says_whether_it_is_of_use_to_ask_again(
    status: HTTPStatus, kind: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setattr(Answering, "status", status)
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}&region=x"
            with pytest.raises(kind) as caught:
                open_bucket(parse_address(url)).create("key", b"x")
            assert type(caught.value) is kind
        finally:
            server.shutdown()
            thread.join()


def test_a_bucket_that_is_not_there_refuses(s3_url: str) -> None:
    there = open_bucket(parse_address(s3_url.replace("ckpt-tests", "other-bucket")))
    with pytest.raises(RefusedError, match="there is no such bucket or folder"):
        there.create("key", b"")
    with pytest.raises(RefusedError, match="NoSuchBucket: The specified bucket does not exist"):
        list(there.list("folder"))
