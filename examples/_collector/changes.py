"""What changed in a repository since it was collected last: a cursor with a lag.

An API sorts its records by the time of their last change, and sends those from ``since`` on. Three
things go wrong where a program just asks from the newest time that it has seen:

- Records that changed within one second are on both sides of the end of a page. So the next page
  begins *at* the last time, not behind it, and what was seen before is left out.
- A record that changes while its pages are read moves to the end, and all behind it move up by one:
  a page by number would miss one. So a page by number is only asked for where a whole page has
  one time.
- A copy of the API's database is late, and what changed shortly before the last request shows up
  after it. So the next generation begins `LAG` earlier.

What is seen is known by its key and the time of its change. The cursor has those of the last `LAG`,
and it is saved with each page: no version of a record is written twice, wherever it was killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from .answers import StrangeAnswerError

KEY, TIME = "codepoint", "updated_at"  # of a record; GitHub's have an "id"
FIRST = datetime(1970, 1, 1, tzinfo=UTC)
LAG = timedelta(minutes=5)
MAX_KEY_LENGTH = 200
# Of the last minutes; the cursor is saved with each page. What is dropped may be written twice.
MAX_RECENT = 2_000


@attrs.frozen
class Place:
    """Where the next page begins, and what has been seen of it.

    Attributes:
        since: It has what changed then or later.
        page: Its number among those that begin there.
        newest: The latest change that was seen.
        recent: The keys of what changed in the `LAG` before that, and when.
    """

    since: datetime
    page: int = 1
    newest: datetime = attrs.field(default=attrs.Factory(lambda self: self.since, takes_self=True))
    recent: Mapping[str, datetime] = attrs.Factory(dict)

    @classmethod
    def read(cls, cursor: Mapping[str, Any]) -> Place:
        """The place that a cursor was made from."""
        return cls(
            since=datetime.fromisoformat(cursor["since"]),
            page=cursor["page"],
            newest=datetime.fromisoformat(cursor["newest"]),
            recent={key: datetime.fromisoformat(at) for key, at in cursor["recent"].items()},
        )

    def cursor(self) -> dict[str, Any]:
        """What is saved with a page."""
        return {
            "since": time_text(self.since),
            "page": self.page,
            "newest": time_text(self.newest),
            "recent": {key: time_text(at) for key, at in self.recent.items()},
        }

    def query(self) -> dict[str, object]:
        """What the API is asked."""
        return {"since": time_text(self.since), "page": self.page}

    def take(self, records: Sequence[Any]) -> tuple[list[Any], Place]:
        """Take a page.

        Returns:
            What is new of it, and the place behind it.

        Raises:
            StrangeAnswerError: a record has no key or no time, or not the order that was asked for.
        """
        found, known, last = list[Any](), dict(self.recent), self.since
        for record in records:
            key, at = _identity(record)
            if at < last:
                raise StrangeAnswerError(
                    f"{key} changed at {time_text(at)}, and comes after {time_text(last)}"
                )
            last = at
            if key not in known or known[key] < at:
                found.append(record)
                known[key] = at
        newest = max(self.newest, last)
        kept = sorted(((at, key) for key, at in known.items() if at >= newest - LAG), reverse=True)
        recent = {key: at for at, key in kept[:MAX_RECENT]}
        page = self.page + 1 if last == self.since else 1
        return found, Place(last, page, newest, recent)


def earlier(cursor: Mapping[str, Any]) -> dict[str, Any]:
    """Where the next generation begins, from the last cursor: ``open_stream(lag=earlier)``."""
    place = Place.read(cursor)
    return attrs.evolve(place, since=place.newest - LAG, page=1).cursor()


def read_moment(text: str) -> datetime:
    """Read a date or a time of ISO 8601; without an offset it is one of UTC.

    Raises:
        ValueError: it is none, or before 1970.
    """
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    if moment < FIRST:
        raise ValueError(f"{text} is before 1970")
    return moment.astimezone(UTC)


def time_text(moment: datetime) -> str:
    """A time as APIs write it: 2026-11-30T12:00:00Z."""
    return moment.isoformat().replace("+00:00", "Z")


def _identity(record: Any) -> tuple[str, datetime]:
    """The key of a record, and when it changed."""
    if not isinstance(record, dict):
        raise StrangeAnswerError("a record that is no object")
    key, text = record.get(KEY), record.get(TIME)
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH:
        raise StrangeAnswerError(f"a record without {KEY}")
    try:
        return key, read_moment(text if isinstance(text, str) else "")
    except (ValueError, OverflowError) as error:
        raise StrangeAnswerError(f"a record without a time in {TIME}: {error}") from error
