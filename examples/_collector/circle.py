"""Whether an API sends cursors in a circle."""

from __future__ import annotations

import attrs


@attrs.define
class Circle:
    """The state of pages by cursor: one that was sent, which any circle comes back to.

    It is kept with each page, so that a circle is found however often the process is killed,
    and is of one size for any number of pages (Brent, BIT 20, 1980).
    """

    cursor: str | None = None
    pages: int = 0  # since that one
    until: int = 1  # so many; then the next is kept, for twice as long

    def comes_back(self, cursor: str | None) -> bool:
        """Whether this cursor, the next to be sent, is the one that was kept."""
        return self.pages > 0 and cursor == self.cursor

    def add(self, cursor: str | None) -> None:
        """Count a page that this cursor gave."""
        if self.pages in (0, self.until):
            self.until *= 2 if self.pages else 1
            self.cursor, self.pages = cursor, 0
        self.pages += 1
