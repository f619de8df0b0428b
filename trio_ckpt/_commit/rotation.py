"""Append files in parts: where one has its size, the next piece goes to the next one.

The parts are named by their numbers, so nothing is kept about them but what records say of every
append file: its confirmed length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

PART = "{part}"
DIGITS = 5


@attrs.define(eq=False, repr=False)
class Rotation:
    """The part of an append file that is written to.

    Attributes:
        template: The name of the file, with ``{part}`` in it.
        rotate_bytes: A part of so many bytes gets no further piece.
    """

    template: str
    rotate_bytes: int
    _number: int = attrs.field(default=0, init=False)

    def place(self, length_of: Callable[[str], int]) -> str:
        """The name of the part that gets the next piece.

        Args:
            length_of: How many bytes a part has when all that is on its way to it is confirmed.
        """
        if length_of(self.newest(length_of)) >= self.rotate_bytes:
            self._number += 1
        return self._name(self._number)

    def newest(self, length_of: Callable[[str], int]) -> str:
        """The name of the newest part that has bytes; of the first one where none has.

        Args:
            length_of: As for `place`.
        """
        while length_of(self._name(self._number + 1)):  # an earlier session has been there
            self._number += 1
        while self._number and not length_of(self._name(self._number)):  # it was taken back
            self._number -= 1
        return self._name(self._number)

    def has(self, name: str) -> bool:
        """Whether a name is that of a part."""
        before, _, after = self.template.partition(PART)
        number = name.removeprefix(before).removesuffix(after)
        return number.isdecimal() and self._name(int(number)) == name

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


def check_no_part(names: Iterable[str], rotations: Sequence[Rotation]) -> None:
    """Check that files are no parts of others, which are written by their template alone.

    Two names of one file would be begun in two orders, so that batches could wait for each other.

    Raises:
        ValueError: one is.
    """
    for name in names:
        for rotation in rotations:
            if rotation.has(name):
                raise ValueError(
                    f"{name!r} is a part of {rotation.template!r} in this session: append to it by "
                    "that path alone"
                )
