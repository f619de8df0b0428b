"""What goes wrong between a foreman and its peers."""

from __future__ import annotations

from ..._util.errors import TrioCkptError


class RemoteError(TrioCkptError):
    """The root of what goes wrong between a foreman, its workers and its clients."""


class ProtocolError(RemoteError):
    """A message breaks the rules of the protocol; nothing has changed because of it."""


class LocalProtocolError(ProtocolError, RuntimeError):
    """This side was about to send what it may not send now: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what it may not send, or bytes that are no message: a bug there, or
    damage on the way; the connection is given up."""


class ConnectionLostError(RemoteError):
    """The connection to the other side is gone, and was not made anew in time."""


class HandshakeRefusedError(RemoteError):
    """The foreman does not let this peer in.

    Attributes:
        code: Why, for programs: ``secret``, ``version``, ``busy``, ``name``.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"the foreman refuses this connection: {reason}")
        self.code = code


class UnsafeBindingError(RemoteError, ValueError):
    """A foreman was to listen beyond this machine without TLS."""


class NotAllowedError(RemoteError, ValueError):
    """A function is not one that a worker may run; the message says why."""


class TaskFailedError(RemoteError):
    """A work item failed: its function raised, on a worker.

    Attributes:
        index: The item's place in the job.
        error_type: The name of the exception's class.
        error_message: Its text.
        remote_traceback: Where, as the worker printed it; for reading.
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

    @staticmethod
    def split(text: str) -> tuple[str, str]:
        """The class and the text of what the function raised, of the text of such an error."""
        _, _, rest = text.partition(" failed: ")
        kind, _, message = rest.partition(": ")
        return kind, message


class TaskLostError(RemoteError):
    """A work item took its worker down again and again, so it is given up."""


class JobRefusedError(RemoteError, ValueError):
    """The foreman does not take a job; the message says why."""


class JobFailedError(RemoteError):
    """A job ended without all its results; the cause, if one item's, is ``__cause__``."""


class JobCancelledError(RemoteError):
    """A job was cancelled."""


class UnknownJobError(RemoteError, LookupError):
    """There is no such job, or no such work item, in the store."""
