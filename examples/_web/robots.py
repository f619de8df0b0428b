"""robots.txt (RFC 9309): what a site lets us fetch, and how fast it wants us to be."""

from __future__ import annotations

import attrs
import protego

from . import urls
from .http import Client, FetchError, Response

# RFC 9309, section 2.5 asks to read at least this much; more is not a robots.txt.
MAX_ROBOTS_BYTES = 500 * 1024
# RFC 9309, section 2.3.1.2: "at least five consecutive redirects".
MAX_ROBOTS_REDIRECTS = 5


class RobotsUnavailableError(Exception):
    """The site cannot say what it allows, so nothing may be fetched (RFC 9309, 2.3.1.4).

    Another attempt may succeed.
    """

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url = url
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.problem}: {self.url} (until it answers, nothing may be fetched)"


@attrs.frozen
class RobotsRules:
    """The rules of one site for one user agent.

    Attributes:
        user_agent: Whom they are for.
        is_cut: Whether there are more, behind MAX_ROBOTS_BYTES.
    """

    user_agent: str
    is_cut: bool
    _rules: protego.Protego = attrs.field(repr=False)

    @classmethod
    def parse(cls, body: bytes, user_agent: str) -> RobotsRules:
        """From a robots.txt, of which MAX_ROBOTS_BYTES are read; an empty one allows all."""
        is_cut = len(body) > MAX_ROBOTS_BYTES
        if is_cut:
            # The line that the limit cuts would be a rule that the site did not write.
            body = body[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]
        return cls(user_agent, is_cut, protego.Protego.parse(body.decode("utf-8-sig", "replace")))

    def allows(self, url: str) -> bool:
        """Whether a URL of this site may be fetched. About 1 us: protego keeps what it compiled."""
        return self._rules.can_fetch(url, self.user_agent)

    @property
    def crawl_delay_s(self) -> float | None:
        """The seconds between two requests that the site asks for; None if it does not."""
        return self._rules.crawl_delay(self.user_agent)


async def load_robots(client: Client, start_url: str, user_agent: str) -> RobotsRules:
    """The rules of the site of ``start_url``.

    No robots.txt (any 4xx but 429) allows all; so do too many redirects, as RFC 9309 has it.

    Args:
        client: Fetches it, within its own timeout for each hop.
        start_url: A normalized URL of the site.
        user_agent: Matched by its product token: for "Bot/1.0 (+url)" the rules of "bot".

    Raises:
        RobotsUnavailableError: The site is not reachable, answers 5xx, or 429: it says "later",
            which is not "yes".

    Cancellation: safe at any time.
    """
    url = urls.site_of(start_url) + "/robots.txt"
    for _ in range(1 + MAX_ROBOTS_REDIRECTS):
        try:
            response = await client.get(url)
        except FetchError as error:
            raise RobotsUnavailableError(
                url, f"robots.txt not reachable ({error.problem})"
            ) from error
        if response.location is None:
            return _rules_of(response, user_agent)
        url = response.location
    return RobotsRules.parse(b"", user_agent)


def _rules_of(response: Response, user_agent: str) -> RobotsRules:
    if response.status >= 500 or response.status == 429:
        raise RobotsUnavailableError(response.url, f"robots.txt answers {response.status}")
    found = 200 <= response.status < 300
    return RobotsRules.parse(response.body if found else b"", user_agent)
