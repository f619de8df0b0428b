"""The table for HTTP knows what the exceptions of common libraries say."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import socket
import ssl
import time
import urllib.error
from email.message import Message
from email.utils import formatdate
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from trio_ckpt import Again, GiveUp, Then, http_retries
from trio_ckpt._commit.http_errors import BROKEN_NAMES


class HttpError(Exception):
    """A client's: some have the code themselves, some have a response."""

    def __init__(self, how: str, code: Any, retry_after: Any = None) -> None:
        super().__init__(code)
        if how.startswith("response."):
            self.response = SimpleNamespace(**{how.removeprefix("response."): code})
        else:
            setattr(self, how, code)
        if retry_after is not None:
            self.retry_after = retry_after


HTTP = http_retries(attempts=3, backoff_s=2.0, max_backoff_s=3.0)


@pytest.mark.parametrize(
    "how", ["status_code", "status", "response.status_code", "response.status"]
)
@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_what_is_refused_fails_the_stream_for_good_and_at_once(how: str, code: int) -> None:
    assert HTTP.decide(HttpError(how, code), 1) == GiveUp(Then.FAIL_STREAM, retryable=False)


@pytest.mark.parametrize(
    "how", ["status_code", "status", "response.status_code", "response.status"]
)
@pytest.mark.parametrize("code", [429, 500, 502, 503, 599])
def test_what_may_pass_runs_again_and_then_fails_the_stream_for_now(how: str, code: int) -> None:
    error = HttpError(how, code)
    first = HTTP.decide(error, 1)
    assert isinstance(first, Again)
    assert not first.pauses
    assert 2.0 <= first.after_s <= 2.2
    second = HTTP.decide(error, 2)
    assert isinstance(second, Again)
    assert 3.0 <= second.after_s <= 3.3
    assert HTTP.decide(error, 3) == GiveUp(Then.FAIL_STREAM)


@pytest.mark.parametrize("code", [429, 503])
def test_what_the_server_asks_for_pauses_the_stream(code: int) -> None:
    assert HTTP.decide(HttpError("status", code, 30), 1) == Again(30.0, pauses=True)
    assert HTTP.decide(HttpError("status", code, 0), 1).pauses  # type: ignore[union-attr]


@pytest.mark.parametrize("asked", ["soon", "-1", -1, float("nan"), float("inf"), [30]])
def test_what_is_no_number_of_seconds_asks_for_nothing(asked: Any) -> None:
    verdict = HTTP.decide(HttpError("status", 429, asked), 1)
    assert isinstance(verdict, Again)
    assert not verdict.pauses
    assert verdict.after_s < 3


def of(kind: type[Exception], cause: BaseException) -> Exception:
    """An exception raised from another one."""
    error = kind("it did not work")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        BrokenPipeError(),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        ssl.SSLError("record layer failure"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        trio.TooSlowError(),
        trio.BrokenResourceError(),
        urllib.error.URLError(ConnectionRefusedError()),
    ],
)
def test_a_broken_network_is_tried_again(error: Exception) -> None:
    assert isinstance(HTTP.decide(error, 1), Again)
    assert HTTP.decide(error, 3) == GiveUp(Then.FAIL_STREAM)


async def test_a_connect_of_trio_that_failed_is_tried_again() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(OSError, match="all attempts to connect") as caught:
        await trio.open_tcp_stream("127.0.0.1", port)
    assert isinstance(HTTP.decide(caught.value, 1), Again)


def new(module: str, name: str) -> Exception:
    """An exception of a library, whatever its class wants to be made of."""
    kind: type[Exception] = getattr(importlib.import_module(module), name)
    return kind.__new__(kind)


def installed_names() -> list[str]:
    """Those of libraries that are here; the others are pinned by the test after the next."""
    modules = {name.rpartition(".")[0] for name in BROKEN_NAMES}
    here = {name for name in modules if importlib.util.find_spec(name.partition(".")[0])}
    return sorted(name for name in BROKEN_NAMES if name.rpartition(".")[0] in here)


@pytest.mark.parametrize("name", installed_names())
def test_broken_requests_of_other_libraries_are_tried_again(name: str) -> None:
    assert isinstance(HTTP.decide(new(*name.rsplit(".", 1)), 1), Again)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("httpx", "ReadTimeout"),
        ("httpx", "ConnectError"),
        ("httpcore", "ConnectTimeout"),
        ("requests", "ReadTimeout"),
        ("urllib3.exceptions", "NewConnectionError"),
    ],
)
def test_their_subclasses_are_tried_again(module: str, name: str) -> None:
    assert isinstance(HTTP.decide(new(module, name), 1), Again)


def test_a_class_is_known_by_its_module_and_name() -> None:
    named = type("ClientConnectionError", (Exception,), {"__module__": "aiohttp.client_exceptions"})
    assert isinstance(HTTP.decide(named(), 1), Again)
    assert HTTP.decide(type("ClientConnectionError", (Exception,), {})(), 1) == GiveUp(Then.FAIL)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        HttpError("status", 400),
        HttpError("status", 418),
        HttpError("status", "500"),
        HttpError("status", None),
        HttpError("status", 1006),
        HttpError("other", 500),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("image file is truncated"),
        of(OSError, ValueError()),
        urllib.error.URLError("unknown url type: x"),
        trio.ClosedResourceError(),
    ],
)
def test_anything_else_fails_its_batch(error: Exception) -> None:
    assert HTTP.decide(error, 1) == GiveUp(Then.FAIL)


@pytest.mark.parametrize("code", [408, 425, HTTPStatus.REQUEST_TIMEOUT])
def test_too_slow_and_too_early_run_again(code: int) -> None:
    assert isinstance(HTTP.decide(HttpError("status", code), 1), Again)
    assert HTTP.decide(HttpError("status", code), 3) == GiveUp(Then.FAIL_STREAM)


# ---------------------------------------------------------------------------------------
# Rate limits
# ---------------------------------------------------------------------------------------


def answered(code: int, headers: Any) -> Exception:
    """As httpx, requests and aiohttp have it: an exception with a response."""
    error = HttpError("response.status_code", code)
    error.response.headers = headers
    return error


def asked(error: Exception) -> float | None:
    """For how long the stream is paused; None: it is not, or the table gives up."""
    verdict = HTTP.decide(error, 1)
    return verdict.after_s if isinstance(verdict, Again) and verdict.pauses else None


def spellings(headers: dict[str, str]) -> list[Any]:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    httpx = importlib.import_module("httpx")
    return [headers, {k.lower(): v for k, v in headers.items()}, message, httpx.Headers(headers)]


@pytest.mark.parametrize("headers", spellings({"Retry-After": "60"}))
@pytest.mark.parametrize("code", [403, 429, 503])
def test_retry_after_is_read_from_any_headers(code: int, headers: Any) -> None:
    assert asked(answered(code, headers)) == 60
    error = urllib.error.HTTPError("http://x", code, "X", headers, None)
    assert asked(error) == 60


def test_a_403_with_retry_after_is_a_limit() -> None:
    assert asked(HttpError("status", 403, 60)) == 60
    assert HTTP.decide(HttpError("status", 403, 60), 3) == GiveUp(Then.FAIL_STREAM)
    assert HTTP.decide(HttpError("status", 404, 60), 1) == GiveUp(Then.FAIL_STREAM, retryable=False)


@pytest.mark.parametrize("code", [403, 429])
def test_a_limit_that_is_used_up_waits_for_its_reset(code: int) -> None:
    at = int(time.time()) + 600
    used_up = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(at)}
    wait = asked(answered(code, used_up))
    assert wait is not None
    assert 590 < wait <= 601
    assert asked(answered(code, used_up | {"X-RateLimit-Reset": "600"})) == 601
    assert asked(answered(code, used_up | {"Retry-After": "7"})) == 7


def test_a_reset_is_measured_by_the_clock_of_the_server() -> None:
    there = time.time() + 86_400  # its clock is a day ahead
    headers = {
        "Date": formatdate(there, usegmt=True),
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int(there) + 3_600),
    }
    assert asked(answered(403, headers)) == 3_601


@pytest.mark.parametrize("reset", ["", "soon", "-5", "1e9", "9" * 400, "²"])
def test_a_reset_that_is_no_number_leaves_the_backoff(reset: str) -> None:
    error = answered(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset})
    assert isinstance(HTTP.decide(error, 1), Again)
    assert asked(error) is None


def test_a_403_with_requests_left_is_a_refusal() -> None:
    headers = {"X-RateLimit-Remaining": "4999", "X-RateLimit-Reset": "600"}
    assert HTTP.decide(answered(403, headers), 1) == GiveUp(Then.FAIL_STREAM, retryable=False)


def test_what_is_too_long_to_wait_for_is_deferred() -> None:
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "86400"}
    assert HTTP.decide(answered(403, headers), 1) == Again(86_401.0, defers=True)
    assert HTTP.decide(HttpError("status", 429, 20_000), 1) == Again(20_000.0, defers=True)
    assert HTTP.decide(HttpError("status", 429, 10**400), 1) == GiveUp(Then.FAIL_STREAM)


def test_a_client_may_be_read_in_its_own_way() -> None:
    table = http_retries(
        status_of=lambda error: error.args[0], retry_after=lambda error: error.args[1], attempts=2
    )
    assert table.decide(ValueError(429, 90.0), 1) == Again(90.0, pauses=True)
    assert table.decide(ValueError(404, None), 1) == GiveUp(Then.FAIL_STREAM, retryable=False)
    assert table.decide(ValueError(None, None), 1) == GiveUp(Then.FAIL)


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([(503, None), (503, None)], None),
        ([(429, 30.0), (503, None)], Again(30.0, pauses=True)),
        ([(429, 30.0), (403, 60.0)], Again(60.0, pauses=True)),
        ([(503, None), (404, None)], GiveUp(Then.FAIL_STREAM, retryable=False)),
        ([(429, 30.0), (400, None)], GiveUp(Then.FAIL)),
    ],
)
def test_answers_to_requests_of_one_nursery_count_together(
    errors: list[tuple[int, float | None]], verdict: Again | GiveUp | None
) -> None:
    parts = [HttpError("status", code, after_s) for code, after_s in errors]
    found = HTTP.decide(ExceptionGroup("Exceptions from Trio nursery", parts), 1)
    if verdict is None:
        assert isinstance(found, Again)
    else:
        assert found == verdict


def test_a_group_that_is_named_as_a_broken_connection_is_one() -> None:
    class LostError(ExceptionGroup[Exception]):
        pass

    lost = LostError("lost", [ValueError()])
    assert HTTP.decide(lost, 1) == GiveUp(Then.FAIL)
    assert isinstance(http_retries(errors=(LostError,)).decide(lost, 1), Again)
