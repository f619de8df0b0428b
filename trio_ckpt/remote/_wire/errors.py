"""Errors between a foreman and its peers."""

from __future__ import annotations

from ..._util.errors import TrioCkptError


class RemoteError(TrioCkptError):
    """The root of all errors between a foreman, its workers and its clients."""


class ProtocolError(RemoteError):
    """A message breaks the rules of the protocol; the state of the connection has not changed."""


class LocalProtocolError(ProtocolError, RuntimeError):
    """This side was about to send a message that is not allowed now: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The other side sent a message that is not allowed, or bytes that are not a message: a bug
    there, or damage in transit; the connection is closed."""


class ConnectionLostError(RemoteError):
    """The connection to the other side is lost, and could not be made again in time."""


class HandshakeRefusedError(RemoteError):
    """The foreman refuses this peer.

    Attributes:
        code: The reason, for programs: ``secret``, ``version``, ``busy``, ``name``.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"the foreman refuses this connection: {reason}")
        self.code = code


class NotAllowedError(RemoteError, ValueError):
    """A worker may not run this function; the message says why."""


class TaskFailedError(RemoteError):
    """A work item failed: its function raised an exception on a worker.

    Attributes:
        index: The item's index in the job.
        error_type: The name of the exception's class.
        error_message: The text of the exception.
        remote_traceback: The traceback as the worker printed it, to read.
    """

    def __init__(
        self,
        error_type: str,
        error_message: str,
        *,
        index: int = 0,
        remote_traceback: str = "",
        run_id: str | None = None,
    ) -> None:
        text = f": {error_message}" if error_message else ""
        super().__init__(
            f"work item {index} failed: {error_type}{text}", run_id=run_id, batch_index=index
        )
        self.index = index
        self.error_type = error_type
        self.error_message = error_message
        self.remote_traceback = remote_traceback
        self.details = {"traceback": remote_traceback} if remote_traceback else {}


def split_failure(text: str) -> tuple[str, str]:
    """Parse the exception's class name and text from the text of a `TaskFailedError`."""
    _, _, rest = text.partition(" failed: ")
    kind, _, message = rest.partition(": ")
    return kind, message


class TaskLostError(RemoteError):
    """Too many workers were lost with a work item, so the item fails."""


class JobRefusedError(RemoteError, ValueError):
    """The foreman refuses a job; the message says why."""


class JobFailedError(RemoteError):
    """A job ended without all its results; ``__cause__`` is the error of an item, if one failed."""


class JobCancelledError(RemoteError):
    """A job was cancelled."""


class UnknownJobError(RemoteError, LookupError):
    """The store has no such job, or no such work item."""
