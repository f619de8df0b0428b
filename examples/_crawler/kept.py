"""What a crawl keeps of a page, so that the next one asks whether the page has changed.

A server that sends ETag or Last-Modified answers 304, without a body, while a page is as it was
(RFC 9110, section 13). The links of the page are kept with them: the next crawl follows them all
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from http import HTTPStatus
from typing import Any

import attrs

import trio_ckpt

from .._web.http import Response

MAX_LINKS = 1_000  # of a page with more nothing is kept, and it is fetched whole each time
MAX_VALIDATOR_CHARS = 1_000


@attrs.frozen
class Kept:
    """A page as the last crawl has met it.

    Attributes:
        etag: The header ETag; empty: there was none.
        last_modified: The header Last-Modified; empty: there was none.
        fetched_at: When; ISO 8601.
        links: Where it leads to on the site.
        forbidden: Where it leads to as well, and robots.txt did not allow it.
        is_archived: Whether a web archive has the response.
    """

    etag: str
    last_modified: str
    fetched_at: str
    links: tuple[str, ...]
    forbidden: tuple[str, ...]
    is_archived: bool

    @classmethod
    def of(cls, batch: trio_ckpt.Batch[str]) -> Kept | None:
        """What the last crawl has kept of a page; None: nothing."""
        known = batch.previous
        if known is None or "links" not in known.metadata:
            return None
        words = known.metadata
        return cls(
            words["etag"],
            words["last_modified"],
            words["fetched_at"],
            (*words["links"],),
            (*words["forbidden"],),
            words["is_archived"],
        )

    def is_judged_so(self, is_allowed: Callable[[str], bool]) -> bool:
        """Whether robots.txt still allows and forbids the same of its links."""
        return all(map(is_allowed, self.links)) and not any(map(is_allowed, self.forbidden))

    @property
    def conditions(self) -> dict[str, str]:
        """The headers that ask for the page only if it has changed."""
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in found.items() if value}


def metadata_of(
    response: Response,
    fetched_at: datetime,
    links: Collection[str],
    is_allowed: Callable[[str], bool],
    *,
    is_archived: bool,
) -> dict[str, Any] | None:
    """What is kept of a page, as metadata of its batch; None: nothing.

    Args:
        response: The page.
        fetched_at: When.
        links: Where it leads to on the site.
        is_allowed: Whether robots.txt allows a link.
        is_archived: Whether a web archive gets the response.
    """
    etag = _validator(response, "etag")
    modified = _validator(response, "last-modified")
    if response.status != HTTPStatus.OK or not (etag or modified) or len(links) > MAX_LINKS:
        return None
    return {
        "etag": etag,
        "last_modified": modified,
        "fetched_at": fetched_at.isoformat(timespec="milliseconds"),
        "links": [link for link in links if is_allowed(link)],
        "forbidden": [link for link in links if not is_allowed(link)],
        "is_archived": is_archived,
    }


def _validator(response: Response, name: str) -> str:
    """A header that can be sent back; empty: there is none."""
    text = response.headers.get(name, "")
    is_usable = text.isascii() and text.isprintable() and len(text) <= MAX_VALIDATOR_CHARS
    return text if is_usable else ""
