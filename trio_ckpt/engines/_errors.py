"""Errors of engines that run work items."""

from __future__ import annotations

from ..remote import RemoteError


class EngineLostError(RemoteError):
    """The engine runs no more items: it is shut down, broken, or cannot be reached.

    The job was interrupted: the same call with the same `job_id` continues it.
    """


class OtherStoreError(RemoteError):
    """A process that runs work items has opened another store than the driver of their job.

    A folder is reached by one machine alone, for example.
    """
