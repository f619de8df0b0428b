"""What differs between kinds of databases: how they connect and lock, what their errors say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from .._util.errors import SinkError
from .._util.exceptions import text_of
from .._util.text import one_line

LOCK_S = 30.0  # how long a statement waits for another process's transaction
IDLE_S = 60.0  # how long a process may be stopped, or do other work, between two statements
COMMIT_S = 10.0  # how long it may be stopped between the marker and its COMMIT


class Driver(ABC):
    """A kind of database; every method blocks.

    Attributes:
        name: The database, as messages name it; without a password.
        is_single: Whether it has one writing transaction at a time.
        begin: The statement that begins a transaction.
        begin_asking: The one that begins a transaction whose statements each see all that was
            committed before them.
        mark: The statement that writes a marker, unless the fence has a newer owner.
        errors: The exceptions of the database's library.
    """

    name: str
    is_single: ClassVar[bool]
    begin: ClassVar[str]
    begin_asking: ClassVar[str]
    mark: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]]

    @abstractmethod
    def connect(self) -> Any:
        """Open a connection, which commits each statement outside of transactions."""

    @abstractmethod
    def is_usable(self, raw: Any) -> bool:
        """Whether the connection has not broken, as far as it is known."""

    @abstractmethod
    def is_in_transaction(self, raw: Any) -> bool:
        """Whether a transaction is open."""

    @abstractmethod
    def interrupt(self, raw: Any) -> None:
        """End the statement that another thread executes."""

    @abstractmethod
    def has_table(self, raw: Any) -> bool:
        """Whether the table of the markers is there."""

    @abstractmethod
    def make_table(self, raw: Any) -> None:
        """Make the table of the markers, in the transaction that is open."""

    @abstractmethod
    def lacks_table(self, error: Exception) -> bool:
        """Whether an error says that the table of the markers is not there."""

    @abstractmethod
    def lock_fence(self, raw: Any, values: Mapping[str, object]) -> None:
        """Wait until no other transaction holds the fence of a stream, and hold it alone."""

    @abstractmethod
    def spell(self, statement: str) -> Any:
        """A statement with values as ``:name``, as the library takes it."""

    @abstractmethod
    def advise(self, error: Exception) -> str:
        """What to do about an error; empty: nothing is known."""

    @abstractmethod
    def reason_of(self, error: Exception) -> str:
        """What an error says, without a password."""

    def sink_error(self, doing: str, error: Exception) -> SinkError:
        """Translate an error of the library."""
        advice = self.advise(error)
        reason = one_line(self.reason_of(error).strip())
        failed = SinkError(
            f"{self.name}: {doing} failed: {reason}{f'; {advice}' if advice else ''}"
        )
        failed.__cause__ = error
        return failed


def reason_text(error: Exception) -> str:
    """What an error says."""
    return text_of(error)
