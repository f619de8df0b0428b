"""robots.txt decides, and a site that cannot show it is left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from examples._web import http
from examples._web.robots import (
    MAX_ROBOTS_BYTES,
    RobotsRules,
    RobotsUnavailableError,
    load_robots,
)
from tests.examples.site import Site, busy, page, redirect, reset

ROBOTS = "User-agent: *\nDisallow: /private\nCrawl-delay: 2.5\n\nUser-agent: evil\nDisallow: /\n"


@pytest.fixture
async def client() -> AsyncIterator[http.Client]:
    async with http.open_client(user_agent="bot") as client:
        yield client


async def test_rules_are_fetched_once_and_obeyed(site: Site, client: http.Client) -> None:
    site.pages["/robots.txt"] = page(ROBOTS)
    rules = await load_robots(client, f"{site.url}/deep/page?x", "bot")
    assert rules.allows(f"{site.url}/public")
    assert not rules.allows(f"{site.url}/private/x")
    assert rules.crawl_delay_s == 2.5
    assert site.hits == {"/robots.txt": 1}


async def test_the_rules_are_those_of_our_name(site: Site, client: http.Client) -> None:
    site.pages["/robots.txt"] = page(ROBOTS)
    rules = await load_robots(client, f"{site.url}/", "Evil/1.0 (+http://e.test)")
    assert not rules.allows(f"{site.url}/public")
    assert rules.crawl_delay_s is None


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_4xx_allows_all(site: Site, client: http.Client, status: int) -> None:
    site.pages["/robots.txt"] = page("User-agent: *\nDisallow: /", status=status)
    assert (await load_robots(client, f"{site.url}/", "bot")).allows(f"{site.url}/private")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_5xx_and_429_are_unavailable(site: Site, client: http.Client, status: int) -> None:
    site.pages["/robots.txt"] = busy("1", status)
    with pytest.raises(RobotsUnavailableError, match=f"robots.txt answers {status}"):
        await load_robots(client, f"{site.url}/", "bot")


async def test_unreachable_is_unavailable(site: Site, client: http.Client) -> None:
    site.pages["/robots.txt"] = reset
    with pytest.raises(RobotsUnavailableError, match="not reachable") as caught:
        await load_robots(client, f"{site.url}/", "bot")
    assert isinstance(caught.value.__cause__, http.ConnectionReset)


async def test_five_redirects_are_followed(site: Site, client: http.Client) -> None:
    site.pages = {f"/{hop}": redirect(f"/{hop + 1}") for hop in range(1, 5)}
    site.pages |= {"/robots.txt": redirect("/1"), "/5": page(ROBOTS)}
    rules = await load_robots(client, f"{site.url}/", "bot")
    assert not rules.allows(f"{site.url}/private")


async def test_redirects_without_end_allow_all(site: Site, client: http.Client) -> None:
    site.pages["/robots.txt"] = redirect("/robots.txt")
    assert (await load_robots(client, f"{site.url}/", "bot")).allows(f"{site.url}/private")
    assert site.hits["/robots.txt"] == 6


def test_more_than_500_kib_is_cut_at_a_line() -> None:
    fill = b"#" * (MAX_ROBOTS_BYTES - 40) + b"\n"
    body = b"User-agent: *\nDisallow: /a\n" + fill + b"Disallow: /bcd\nDisallow: /e\n"
    rules = RobotsRules.parse(body, "bot")
    assert not rules.allows("http://e.test/a")
    # The cut falls inside "/bcd"; half of that line would forbid more than the site does.
    assert rules.allows("http://e.test/b")
    assert rules.allows("http://e.test/e")
    assert rules.is_cut
    assert not RobotsRules.parse(body[:100], "bot").is_cut


def test_bytes_that_are_no_text_and_a_mark_at_the_start() -> None:
    body = b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /a\r\n\xff\xfe\r\nDisallow: /b\r\n"
    rules = RobotsRules.parse(body, "bot")
    assert not rules.allows("http://e.test/a")
    assert not rules.allows("http://e.test/b")
    assert rules.allows("http://e.test/c")
