"""The retry table for collections over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .._util.arguments import exception_classes, function
from . import http_errors
from .retry import RetryRule, RetryTable, Then

REFUSED = frozenset({401, 403, 404, 410, 451})  # asking again changes nothing
PASSING = frozenset({408, 425})  # "you were too slow" and "too early" (RFC 9110, RFC 8470)
SERVER_ERROR = 500

MAX_LIMITED_S = 3_900.0
"""Long windows of rate limits are an hour; five minutes more allow for different clocks."""


def http_retries(
    *,
    status_of: Callable[[BaseException], int | None] | None = None,
    retry_after: Callable[[BaseException], float | None] | None = None,
    errors: tuple[type[BaseException], ...] = (),
    attempts: int = 5,
    backoff_s: float = 1.0,
    max_backoff_s: float = 60.0,
) -> RetryTable:
    """Make the retry table that suits most collections over HTTP.

    =====================================  ==================================================
    429; 403 that says how long to wait,   the stream waits as the server asks; then again
    or that the rate limit is used up
    408, 425, 5xx                          again, with backoff, or as the server asks
    timeouts, broken connections           again, with backoff
    401, 403, 404, 410, 451                the stream fails, and is not retried by itself
    anything else                          the batch fails, and its loop raises
    =====================================  ==================================================

    Timeouts and broken connections are those of Python and trio (`TimeoutError`,
    `ConnectionError`, a name that is not found, TLS, a connect that failed), and those of httpx,
    httpcore, h11, anyio, requests, urllib3, urllib and aiohttp, and of the clients of OpenAI and
    Anthropic.  Errors of files, such as `FileNotFoundError`, are not among them.

    Args:
        status_of: Reads the status code from an exception; default: its ``status_code``,
            ``status`` or ``code``, or that of its ``response``, where that is an int from 100
            to 599.
        retry_after: Reads the seconds to wait from it; default: its ``retry_after``, or the
            header Retry-After (RFC 9110, section 10.2.3) of its ``response``, or its own: a
            number, or a text as servers send it, seconds or a date.  Where the header
            X-RateLimit-Remaining is 0: the time until X-RateLimit-Reset.
        errors: Further exceptions that mean a timeout or a broken connection.
        attempts: How often a batch is tried in all.
        backoff_s: The wait before the second attempt, in seconds; see `RetryRule`.
        max_backoff_s: The longest backoff, in seconds; see `RetryRule`.

    Returns:
        The table, for the argument ``retry``.
    """
    if status_of is not None:
        function("status_of", status_of)
    if retry_after is not None:
        function("retry_after", retry_after)
    status_of = status_of or http_errors.status_of
    retry_after = retry_after or http_errors.retry_after_of
    more = exception_classes("errors", errors)

    def status(error: BaseException) -> int:
        return status_of(error) or 0

    def is_passing(error: BaseException) -> bool:
        code = status(error)
        return code >= SERVER_ERROR or code in PASSING or is_broken(error)

    def is_broken(error: BaseException) -> bool:
        return isinstance(error, more) or http_errors.is_broken(error)

    again = partial(
        RetryRule,
        (Exception, *more),  # a class of groups among them matches groups as a whole
        attempts=attempts,
        then=Then.FAIL_STREAM,
        backoff_s=backoff_s,
        max_backoff_s=max_backoff_s,
        retry_after=retry_after,
    )
    refused = RetryRule(
        (Exception,),
        when=lambda error: status(error) in REFUSED,
        attempts=1,
        then=Then.FAIL_STREAM,
        retryable=False,
    )
    is_limited = partial(http_errors.is_limited, status_of=status_of, retry_after=retry_after)
    limited = again(when=is_limited, max_retry_after_s=MAX_LIMITED_S)
    return RetryTable((limited, refused, again(when=is_passing)))
