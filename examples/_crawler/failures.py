"""What can go wrong with a page, and what becomes of it then."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import trio_ckpt
from trio_ckpt.outputs import AnyPath, open_outputs

from .._web import errors, http
from .._web.charsets import UnreadableText
from .._web.retry_after import retry_after_s

# A site that asks for more is better left, and resumed another time.
LONGEST_PAUSE_S = 3_600.0
SLOW_DOWN = frozenset({403, 429, 503})  # with Retry-After; 429 also without
PASSING = frozenset({408, 425})  # "you were too slow", "too early"
PARTIAL = 206  # we never ask for a part


class CannotCrawlError(Exception):
    """There is nothing to crawl there; the message says why."""


class ForbiddenError(Exception):
    """robots.txt does not allow the page any more."""


class RefusedError(Exception):
    """The server answered for good: 403, 404 and their like."""


class RedirectError(Exception):
    """A redirect that never arrives at a page."""


class ServerTroubleError(Exception):
    """The server failed for now: 5xx."""


class SlowDownError(Exception):
    """The server asks us to wait: 429, or 403 and 503 with Retry-After."""

    def __init__(self, message: str, after_s: float | None) -> None:
        super().__init__(message)
        self.after_s = after_s


def check_status(response: http.Response) -> None:
    """Raise the error that a status stands for; pages and redirects pass.

    Raises:
        SlowDownError, ServerTroubleError, RefusedError: as their names say.
    """
    status = response.status
    problem = f"{status} {response.url}"
    after_s = retry_after_s(response.headers, time.time())
    if status == 429 or (status in SLOW_DOWN and after_s is not None):
        raise SlowDownError(problem, after_s)
    if status >= 500 or status in PASSING:
        raise ServerTroubleError(problem)
    if status not in http.REDIRECTS and (not 200 <= status < 300 or status == PARTIAL):
        raise RefusedError(problem)


def _asked_wait(error: BaseException) -> float | None:
    return error.after_s if isinstance(error, SlowDownError) else None


RETRIES = trio_ckpt.RetryTable(
    (
        trio_ckpt.RetryRule(
            (SlowDownError,),
            attempts=20,
            retry_after=_asked_wait,
            max_retry_after_s=float("inf"),  # the crawl is stopped before that
            then=trio_ckpt.Then.SKIP,
        ),
        trio_ckpt.RetryRule(
            (
                errors.BadResponse,
                errors.BodyTooLarge,
                ForbiddenError,
                RedirectError,
                RefusedError,
                UnreadableText,
            ),
            attempts=1,
            then=trio_ckpt.Then.SKIP,
        ),
        # Where the site cannot be reached no page has failed: the crawl is stopped before that.
        trio_ckpt.RetryRule((errors.NoConnection,), attempts=1_000, max_backoff_s=10),
        trio_ckpt.RetryRule(
            (errors.FetchError, ServerTroubleError),
            attempts=5,
            backoff_s=0.5,
            max_backoff_s=30,
            then=trio_ckpt.Then.SKIP,
        ),
    )
)


def write_failed(
    place: AnyPath, skipped: Sequence[tuple[int, str, trio_ckpt.FailedAttempt]]
) -> None:
    """Write failed.jsonl, all of it each time, so that it is always the present truth."""
    lines = [
        json.dumps(
            {
                "url": url,
                "error": attempt.error.type if attempt.error else None,
                "message": attempt.error.message if attempt.error else None,
                "attempts": attempt.attempts,
            },
            ensure_ascii=False,
        )
        for _index, url, attempt in skipped
    ]
    outputs = open_outputs(place)
    try:
        outputs.write("failed.jsonl", "".join(f"{line}\n" for line in lines).encode())
    finally:
        outputs.close()
