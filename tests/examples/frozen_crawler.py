"""The crawler at a time that stands still, with an archive in many parts."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, tzinfo

from examples import crawler
from examples._crawler import warc


class Frozen(datetime):
    """The time at which each page is fetched."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Frozen:
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz or UTC)


if __name__ == "__main__":
    crawler.datetime = Frozen  # type: ignore[attr-defined]  # what it has imported
    warc.ROTATE_BYTES = 20_000
    sys.exit(crawler.main())
