"""Retry-After is understood in both its forms, and never trusted beyond its cap."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from examples._web.http import Headers
from examples._web.retry_after import MAX_RETRY_AFTER_S, retry_after_s

# 1994-11-06 08:49:37 GMT
NOW = 784_111_777.0
HUGE_ZONE = "Sun, 06 Nov 1994 08:49:47 +99999999999999"


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone of this machine is not that of HTTP's dates."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC-5")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:49:47 -0000", 10.0),
        ("Sun, 06 Nov 1994 08:49:47", 10.0),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0.0),
        ("86400", 86_400.0),
        ("2592001", MAX_RETRY_AFTER_S),
        ("9" * 5000, MAX_RETRY_AFTER_S),
        ("Sun, 06 Nov 2094 08:49:47 GMT", MAX_RETRY_AFTER_S),
    ],
)
@pytest.mark.usefixtures("far_from_greenwich")
def test_values(value: str, expected: float) -> None:
    assert retry_after_s({"retry-after": value}, NOW) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "1.5",
        "soon",
        "٣",
        "1 2",
        "Sun, 99 Nov 1994 08:49:47 GMT",
        "nan",
        "inf",
        "1, 2",
        HUGE_ZONE,
    ],
)
def test_garbage_is_none(value: str) -> None:
    assert retry_after_s({"retry-after": value}, NOW) is None


def test_no_header_is_none() -> None:
    assert retry_after_s({}, NOW) is None


def test_the_headers_of_a_response_will_do() -> None:
    assert retry_after_s(Headers.of([(b"retry-after", b"7")]), NOW) == 7.0
