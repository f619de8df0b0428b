"""A job as it is stored: what to do with which items, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any

import attrs
import msgspec

from .._errors import StoreDamagedError
from .._history import read_pages
from .._records import Kind, Record, Status
from .._values import JOB_STREAM, as_plain
from ..abc import RunView, Store
from ._errors import NotAllowedError
from ._messages import MAX_JOB_ITEMS, MAX_NAME_CHARS, MIB, JobOptions

MAX_VALUE_BYTES = 4 * MIB  # of one item or one result: it travels in one message
ITEMS_BYTES = MIB  # of items, in one message
STORED_DEPTH = 2  # a value is stored as a part of a record: ``metadata.items[3]``
MAX_JOB_BYTES = 256 * MIB  # of all items: the foreman has them in memory

_FUNCTION = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@attrs.frozen
class Submission:
    """A job as its client gave it.

    Attributes:
        function: ``module:function``.
        items: One result comes of each.
        options: How it is done.
    """

    function: str
    items: Sequence[Any]
    options: JobOptions

    def to_plain(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "function": self.function,
            "items": list(self.items),
            "options": msgspec.to_builtins(self.options),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Submission:
        """The inverse of `to_plain`.

        Raises:
            StoreDamagedError: it is not what was stored.
        """
        try:
            options = msgspec.convert(plain["options"], JobOptions)
            return cls(str(plain["function"]), list(plain["items"]), options)
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise StoreDamagedError(f"a job cannot be read: {error}") from error


@attrs.frozen
class JobHead:
    """What of a submission is read without its items.

    Attributes:
        function: ``module:function``.
        options: How it is done.
    """

    function: str
    options: JobOptions

    def to_plain(self) -> dict[str, Any]:
        """The head as it is stored."""
        return {"function": self.function, "options": msgspec.to_builtins(self.options)}


def job_records(submission: Submission, at: float) -> tuple[Record, Record]:
    """The records of `JOB_STREAM`: the submission, and its head, which every fold keeps."""
    head = JobHead(submission.function, submission.options).to_plain()
    return (
        Record(kind=Kind.BATCH, at=at, index=0, metadata=submission.to_plain()),
        Record(kind=Kind.FINISH, at=at, last_index=0, metadata=head),
    )


def head_of(view: RunView) -> JobHead | None:
    """What a job is to do; None: its run does not say so, so no client was told it was taken.

    Raises:
        StoreDamagedError: it is not what was stored.
    """
    entry = view.streams.get(JOB_STREAM)
    if entry is None or entry.progress.status is not Status.COMPLETE:
        return None
    plain = entry.progress.metadata
    try:
        options = msgspec.convert(plain["options"], JobOptions)
        return JobHead(str(plain["function"]), options)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise StoreDamagedError(f"a job cannot be read: {error}", run_id=view.run_id) from error


def check_function(name: str) -> str:
    """Return the name of a function if it is a good one; whether it is there, a worker knows.

    Raises:
        NotAllowedError: it is not ``module:function``.
    """
    if len(name) > MAX_NAME_CHARS or _FUNCTION.fullmatch(name) is None:
        raise NotAllowedError(f"a function is named 'module:function', not {name[:80]!r}")
    return name


def as_sent(value: Any, path: str, *, allow_nan: bool = False) -> tuple[Any, int]:
    """An item or a result as it arrives at the other end, a copy; and its size in bytes.

    Args:
        value: JSON-like.
        path: What it is called in messages.
        allow_nan: Whether it may have NaN and infinity in it.

    Raises:
        NotEncodableError: it is not JSON-like.
        ValueError: it is too large.
    """
    plain = as_plain(value, path, depth=STORED_DEPTH, allow_nan=allow_nan)
    size = len(msgspec.msgpack.encode(plain))
    if size > MAX_VALUE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, over {MAX_VALUE_BYTES:,}: keep it in a file or in "
            "the state, and give its name"
        )
    return plain, size


def check_items(items: Sequence[Any]) -> None:
    """See that a job is not too large.

    Raises:
        ValueError: it is.
    """
    if len(items) > MAX_JOB_ITEMS:
        raise ValueError(f"a job has at most {MAX_JOB_ITEMS:,} items, not {len(items):,}")


def checked_submission(function: str, items: Sequence[Any], options: JobOptions) -> Submission:
    """A job that a foreman would take.

    Raises:
        NotEncodableError, NotAllowedError, ValueError: it would not.
    """
    check_items(items)
    sent = [as_sent(item, f"items[{place}]") for place, item in enumerate(items)]
    size = sum(size for _, size in sent)
    if size > MAX_JOB_BYTES:
        raise ValueError(f"the items have {size:,} bytes, over {MAX_JOB_BYTES:,}")
    try:
        options = msgspec.convert(msgspec.to_builtins(options), JobOptions)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    return Submission(check_function(function), [item for item, _ in sent], options)


def parts_of(items: Sequence[Any]) -> Iterable[tuple[int, list[Any]]]:
    """Items in messages, with the place of the first of each."""
    part: list[Any] = []
    first = size = 0
    for place, item in enumerate(items):
        part.append(item)
        size += len(msgspec.msgpack.encode(item))
        if size >= ITEMS_BYTES:
            yield first, part
            part, first, size = [], place + 1, 0
    if part:
        yield first, part


async def read_submission(store: Store, job_id: str) -> Submission | None:
    """The job as it was submitted; None: there is no such job, or it was never whole.

    Raises:
        StoreDamagedError: it is not what was stored.
    """
    stored = await store.read_run(job_id)
    if stored is None:
        return None
    async with aclosing(read_pages(store, job_id, stored.generation, JOB_STREAM)) as pages:
        async for records in pages:
            for _, record in records:
                if record.kind is Kind.BATCH:
                    return Submission.from_plain(record.metadata)
    return None
