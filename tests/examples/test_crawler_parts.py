"""The crawler's parts by themselves: statuses, redirects, forbidden links, the display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trio_ckpt
from examples._crawler.display import describe
from examples._crawler.failures import (
    RETRIES,
    RedirectError,
    RefusedError,
    ServerTroubleError,
    SlowDownError,
    check_status,
)
from examples._crawler.memory import MAX_REDIRECTS, Forbidden, Redirects
from examples._web import http
from examples._web.heads import Headers


def response(status: int, **headers: str) -> http.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.Response(url="http://e.test/", status=status, headers=Headers(named), body=b"")


@pytest.mark.parametrize("status", [200, 201, 203, 204, 301, 302, 303, 307, 308])
def test_pages_and_redirects_pass(status: int) -> None:
    check_status(response(status))
    check_status(response(status, retry_after="5"))


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (206, {}, RefusedError),
        (300, {}, RefusedError),
        (304, {}, RefusedError),
        (400, {}, RefusedError),
        (403, {}, RefusedError),
        (404, {"retry_after": "5"}, RefusedError),
        (410, {}, RefusedError),
        (408, {}, ServerTroubleError),
        (425, {}, ServerTroubleError),
        (500, {}, ServerTroubleError),
        (503, {}, ServerTroubleError),
        (599, {}, ServerTroubleError),
        (429, {}, SlowDownError),
        (429, {"retry_after": "5"}, SlowDownError),
        (403, {"retry_after": "5"}, SlowDownError),
        (503, {"retry_after": "5"}, SlowDownError),
        (503, {"retry_after": "soon"}, ServerTroubleError),
    ],
)
def test_every_other_status_is_an_error(
    status: int, headers: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"{status} http://e.test/") as caught:
        check_status(response(status, **headers))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("error", "attempts", "then"),
    [
        (RefusedError(), 1, trio_ckpt.Then.SKIP),
        (RedirectError(), 1, trio_ckpt.Then.SKIP),
        (http.BadResponse("u", "p"), 1, trio_ckpt.Then.SKIP),
        (ServerTroubleError(), 5, trio_ckpt.Then.SKIP),
        (http.TruncatedBody("u", "p"), 5, trio_ckpt.Then.SKIP),
        (SlowDownError("m", 5.0), 20, trio_ckpt.Then.SKIP),
    ],
)
def test_a_page_is_given_up_after_so_many_attempts(
    error: Exception, attempts: int, then: trio_ckpt.Then
) -> None:
    assert RETRIES.decide(error, attempts) == trio_ckpt.GiveUp(then)
    if attempts > 1:
        assert isinstance(RETRIES.decide(error, attempts - 1), trio_ckpt.Again)


def test_a_site_that_cannot_be_reached_gives_up_no_page() -> None:
    error = http.NoConnection("u", "p")
    assert isinstance(RETRIES.decide(error, 100), trio_ckpt.Again)


# -- redirects -------------------------------------------------------------------------------------


def test_ways_that_meet_are_no_circle() -> None:
    redirects = Redirects()
    for url, location in (("a", "c"), ("b", "c"), ("c", "d"), ("e", "a")):
        redirects.follow(url, location)


@pytest.mark.parametrize("length", [1, 2, 3, MAX_REDIRECTS])
def test_a_circle_of_any_length_is_noticed_once(length: int) -> None:
    redirects = Redirects()
    for n in range(length - 1):
        redirects.follow(str(n), str(n + 1))
    with pytest.raises(RedirectError, match=f"in a circle: {length - 1} -> 0"):
        redirects.follow(str(length - 1), "0")
    redirects.follow("another", "0")


def test_a_way_has_an_end() -> None:
    redirects = Redirects()
    for n in range(MAX_REDIRECTS):
        redirects.follow(str(n), str(n + 1))
    with pytest.raises(RedirectError, match="more than 20 redirects, the last to 21"):
        redirects.follow(str(MAX_REDIRECTS), str(MAX_REDIRECTS + 1))


def test_redirects_are_read_back_and_lines_that_are_none_passed_over(tmp_path: Path) -> None:
    lines = ['{"url": "a", "location": "b"}', "[]", "null", '{"url": 5, "location": "x"}', "\x00"]
    lines += ['{"url": "b"}', '{"url": "b", "location": "c"}', '{"url": "c", "locat']
    (tmp_path / "redirects.jsonl").write_text("\n".join(lines))
    redirects = Redirects.load(tmp_path, 10_000)
    with pytest.raises(RedirectError, match="circle"):
        redirects.follow("c", "a")


def test_without_a_file_there_is_nothing_to_remember(tmp_path: Path) -> None:
    assert Forbidden.load(tmp_path, 100).urls == set()
    Redirects.load(tmp_path, 100).follow("a", "b")


def test_lines_that_are_not_confirmed_are_not_read(tmp_path: Path) -> None:
    line = '{"url": "a", "on": "x"}\n'
    (tmp_path / "forbidden.jsonl").write_text(line + line.replace("a", "b"))
    assert Forbidden.load(tmp_path, len(line)).urls == {"a"}
    assert Forbidden.load(tmp_path, 0).urls == set()


def test_a_forbidden_link_is_new_once_until_it_is_allowed() -> None:
    forbidden = Forbidden()
    assert forbidden.new(["a", "b"]) == ["a", "b"]
    assert forbidden.new(["b", "c"]) == ["c"]
    assert forbidden.release(lambda url: url != "b") == ["a", "c"]
    assert forbidden.urls == {"b"}


# -- the line --------------------------------------------------------------------------------------


def statistics(**fields: Any) -> trio_ckpt.StreamStatistics:
    nothing: dict[str, Any] = dict.fromkeys(trio_ckpt.StreamStatistics.__struct_fields__, 0)
    return trio_ckpt.StreamStatistics(**(nothing | {"totals": {}, "rate_per_s": None} | fields))


def test_the_line_counts_everything_that_is_not_a_page() -> None:
    assert describe(statistics(records=1_200), forbidden=0) == "1,200 pages, 0 in queue"
    full = statistics(
        records=7,
        left=5,
        rate_per_s=12.4,
        eta_s=0.4,
        session_retries=1,
        totals={"redirects": 2, "links_left_out": 3},
        skipped=4,
        waiting=6,
    )
    assert describe(full, forbidden=8) == (
        "7 pages, 5 in queue, 12/s, ETA 1 s, 1 retry, 2 redirects, 8 forbidden by robots.txt, "
        "4 failed, 3 links left out, 6 waiting to be tried again"
    )
