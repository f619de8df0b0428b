"""Which code confirmed which batches of a stream, as its records have it."""

from __future__ import annotations

import msgspec

from .._util.index_set import IndexSet

MAX_OLD = 100  # versions of code that are told apart; the oldest of more are one


class CodeMark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The code that works on a stream.

    Attributes:
        name: The name of the function.
        digest: The digest of its source, hexadecimal; empty: it is not known.
        session: The session that noted it first.
    """

    name: str
    digest: str
    session: int


UNKNOWN = CodeMark("", "", 0)


class CodeBatches(msgspec.Struct, frozen=True):
    """The batches that an older code confirmed; nothing changes it.

    Attributes:
        mark: The code.
        indexes: The batches.
    """

    mark: CodeMark
    indexes: IndexSet

    def without(self, indexes: IndexSet) -> CodeBatches:
        """The same code, without batches that are re-queued."""
        left = self.indexes.copy()
        left.subtract(indexes)
        return CodeBatches(self.mark, left)


OldCode = tuple[CodeBatches, ...]


def batches_by_code(confirmed: IndexSet, newest: CodeMark | None, old: OldCode) -> OldCode:
    """The batches that each code confirmed, the newest code last.

    Args:
        confirmed: The batches that are confirmed.
        newest: The newest code; None: none was noted.
        old: The batches of older code.
    """
    rest = confirmed.copy()
    for one in old:
        rest.subtract(one.indexes)
    return (*old, CodeBatches(newest or UNKNOWN, rest))


def change_code(
    confirmed: IndexSet, before: CodeMark | None, old: OldCode, now: CodeMark
) -> OldCode:
    """The batches of older code, when the code of a stream changes.

    What an older code is not known to have confirmed is of the code that works now.  So a
    confirmed batch costs nothing more, and code that comes back is not old any more.

    Args:
        confirmed: The batches that are confirmed.
        before: The code until now; None: none was noted.
        old: The batches of older code until now.
        now: The code from now on.
    """
    if before is not None and before.digest == now.digest:
        return old
    known = batches_by_code(confirmed, before, old)
    found = [one for one in known if one.indexes and one.mark.digest != now.digest]
    while len(found) > MAX_OLD:
        first, second, *others = found
        found = [CodeBatches(UNKNOWN, first.indexes.union(second.indexes)), *others]
    return tuple(found)


def encode_old(old: OldCode) -> list[tuple[CodeMark, list[int]]]:
    """The batches of older code, as a fold has them."""
    return [(one.mark, one.indexes.to_steps()) for one in old]


def decode_old(stored: list[tuple[CodeMark, list[int]]]) -> OldCode:
    """The inverse of `encode_old`."""
    return tuple(CodeBatches(mark, IndexSet.from_steps(steps)) for mark, steps in stored)
