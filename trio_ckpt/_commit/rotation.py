"""Append files in parts: where one has its size, the next piece goes to the next one.

The parts are named by their numbers, so nothing is kept about them but what records say of every
append file: its confirmed length.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

PART = "{part}"
DIGITS = 5


@attrs.define(eq=False)
class Rotation:
    """The part of an append file that is written to.

    Attributes:
        template: The name of the file, with ``{part}`` in it.
        rotate_bytes: A part of so many bytes gets no further piece.
    """

    template: str
    rotate_bytes: int
    _number: int = attrs.field(default=0, init=False)
    _length: int = attrs.field(default=0, init=False)  # when all of its pieces are confirmed

    def place(self, size: int, confirmed: Mapping[str, int], pieces: Mapping[str, int]) -> str:
        """The name of the part that gets a piece.

        Args:
            size: How many bytes the piece has.
            confirmed: The confirmed bytes of each append file.
            pieces: How many pieces each append file was given that are not confirmed yet.
        """
        if not pieces.get(self._name(self._number)):
            self._find_newest(confirmed)
        if self._length >= self.rotate_bytes:
            self._number += 1
            self._length = confirmed.get(self._name(self._number), 0)
        self._length += size
        return self._name(self._number)

    def _find_newest(self, confirmed: Mapping[str, int]) -> None:
        """Go to the newest part that has bytes; a rewind may have taken some of them."""
        while confirmed.get(self._name(self._number + 1)):
            self._number += 1
        while self._number and not confirmed.get(self._name(self._number)):
            self._number -= 1
        self._length = confirmed.get(self._name(self._number), 0)

    def _name(self, number: int) -> str:
        return self.template.replace(PART, f"{number:0{DIGITS}}")


def check_template(path: str) -> None:
    """Check that a file in parts has a place for their number.

    Raises:
        ValueError: it has none, or several.
    """
    if path.count(PART) != 1:
        raise ValueError(
            f"{path!r}: with rotate_bytes= the path of an append file has {PART} once, for the "
            f"number of the part, as in 'pages-{PART}.jsonl'"
        )
