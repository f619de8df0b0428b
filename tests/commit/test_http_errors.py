"""What is read from an exception about a request: status, headers, time to wait.

What a retry table does with it is tested in `test_http_retries.py`.
"""

from __future__ import annotations

import errno
import socket
import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from trio_ckpt._commit.http_errors import (
    MAX_ASKED_S,
    RESET_MARGIN_S,
    header_of,
    is_broken,
    is_used_up,
    retry_after_of,
    status_of,
)


class HttpError(Exception):
    """An error of some client: it has what it is given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__("refused")
        vars(self).update(fields)


def response(**fields: Any) -> HttpError:
    return HttpError(response=SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HttpError(status_code=503), 503),
        (HttpError(status=404), 404),
        (HttpError(code=599), 599),
        (response(status_code=100), 100),
        (HttpError(status_code=0, code=429), 429),
        (HttpError(code="503"), None),
        (HttpError(code=600), None),
        (HttpError(code=99), None),
        (HttpError(), None),
        (OSError(errno.EPIPE, "no status"), None),
    ],
)
def test_a_status_is_a_number_from_100_to_599(error: Exception, status: int | None) -> None:
    assert status_of(error) == status


def test_a_header_is_found_in_either_spelling() -> None:
    assert header_of(response(headers={"retry-after": " 5 "}), "Retry-After") == "5"
    assert header_of(HttpError(headers={"Retry-After": "5"}), "Retry-After") == "5"
    both = HttpError(headers={"A": "own"}, response=SimpleNamespace(headers={"A": "its"}))
    assert header_of(both, "A") == "its"
    for headers in ({}, {"A": 5}, None, 3):
        assert header_of(response(headers=headers), "A") is None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (HttpError(retry_after=2), 2.0),
        (HttpError(retry_after="2.5"), 2.5),
        (response(headers={"Retry-After": "7"}), 7.0),
        (HttpError(retry_after=10**40), float(MAX_ASKED_S)),
        (HttpError(retry_after=-1), None),
        (HttpError(retry_after=float("inf")), None),
        (HttpError(retry_after=float("nan")), None),
        (HttpError(retry_after="soon"), None),
        (HttpError(), None),
    ],
)
def test_what_the_server_asks_for_is_a_finite_time(error: Exception, seconds: float | None) -> None:
    assert retry_after_of(error) == seconds


def test_a_date_is_the_time_until_then() -> None:
    later = formatdate(time.time() + 100, usegmt=True)
    assert retry_after_of(HttpError(retry_after=later)) == pytest.approx(99, abs=3)
    assert retry_after_of(HttpError(retry_after=formatdate(0, usegmt=True))) == 0


def test_a_reset_counts_only_where_the_limit_is_used_up() -> None:
    left: dict[str, str] = {"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "30"}
    used: dict[str, str] = left | {"X-RateLimit-Remaining": "0"}
    assert is_used_up(response(headers=used))
    assert not is_used_up(response(headers=left))
    assert retry_after_of(response(headers=used)) == 30 + RESET_MARGIN_S
    assert retry_after_of(response(headers=left)) is None
    assert retry_after_of(response(headers=left, status=429)) == 30 + RESET_MARGIN_S


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        socket.gaierror(),
        trio.BrokenResourceError(),
        OSError(errno.EHOSTUNREACH, "no route"),
    ],
)
def test_a_broken_connection_is_told_by_its_class_or_number(error: Exception) -> None:
    assert is_broken(error)


def test_an_error_without_a_number_is_what_caused_it() -> None:
    caused = OSError("all attempts failed")
    caused.__cause__ = ExceptionGroup("", [ValueError(), ConnectionRefusedError()])
    assert is_broken(caused)
    caused.__cause__ = ValueError()
    assert not is_broken(caused)
    assert not is_broken(OSError(errno.ENOSPC, "disk full"))
    assert not is_broken(ValueError())
