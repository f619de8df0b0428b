"""What a record says of its stream as a whole, where the records before it do not."""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

import msgspec

from .._journal.code import CodeMark
from .._journal.record import Opened, Record
from .extent import Extent


class Introduced(Protocol):
    """What is asked of a stream."""

    @property
    def extent(self) -> Extent:
        """How far it goes, and what is durable of it."""
        ...

    @property
    def frontier(self) -> Sized | None:
        """Its items, if it has a `Frontier`."""
        ...

    @property
    def opened_at(self) -> float:
        """When it was opened; Unix time, s."""
        ...

    @property
    def first_index(self) -> int:
        """The index of its first batch."""
        ...

    @property
    def phase(self) -> str | None:
        """The phase of the run that was open when it was opened."""
        ...

    @property
    def code(self) -> CodeMark | None:
        """The code that works on it, if that is noted."""
        ...


def introduced(stream: Introduced, record: Record) -> Record:
    """A record, with what the records do not have yet about the stream as a whole."""
    extent, news = stream.extent, dict[str, object]()
    progress = extent.progress
    if progress.opened_at != stream.opened_at:
        news["opened"] = Opened(stream.opened_at, stream.first_index)
    if stream.phase not in (None, progress.phase):
        news["phase"] = stream.phase
    if stream.code is not None and is_news(stream.code, progress.code):
        news["code"] = stream.code
    if extent.estimate not in (None, progress.estimate):
        news["estimate"] = extent.estimate
    expected = extent.expected if stream.frontier is None else len(stream.frontier)
    if expected not in (None, progress.expected) and not extent.has_ended:
        news["expected"] = expected
    return msgspec.structs.replace(record, **news) if news else record


def is_news(code: CodeMark, noted: CodeMark | None) -> bool:
    """Whether the records have another code than the one that works on a stream now."""
    return noted is None or noted.digest != code.digest
