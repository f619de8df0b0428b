"""A job as it is stored: its function, items and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

import attrs
import msgspec

from ..._journal.history import iter_records
from ..._journal.record import Record, RecordKind, Status
from ..._journal.store import RunView, Store
from ..._util.arguments import flag, mapping, one_of, seconds, several, shown, text, whole_number
from ..._util.errors import StoreDamagedError
from ..._util.plain import JOB_STREAM, Plain, as_plain
from .errors import NotAllowedError
from .job_messages import MAX_ATTEMPTS, MAX_LOSSES, JobOptions
from .message import MAX_JOB_ITEMS, MAX_NAME_CHARS, MIB

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python has it from 3.12 on

MAX_VALUE_BYTES = 4 * MIB  # of one item or one result: it travels in one message
ITEMS_BYTES = MIB  # of items, in one message
STORED_DEPTH = 2  # a value is stored as a part of a record: ``metadata.items[3]``
MAX_JOB_BYTES = 256 * MIB  # of all items: the foreman has them in memory
MAX_INTERVAL_S = 1e9

_FUNCTION = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@attrs.frozen
class JobHead:
    """The part of a submission that can be read without its items.

    Attributes:
        function: ``module:function``.
        options: How the job is run.
    """

    function: str
    options: JobOptions

    def to_plain(self) -> dict[str, Plain]:
        """Return the head in its stored form."""
        return {"function": self.function, "options": msgspec.to_builtins(self.options)}

    @classmethod
    def from_plain(cls, plain: dict[str, Plain], run_id: str) -> Self:
        """The inverse of `to_plain`.

        Raises:
            StoreDamagedError: the value is not a stored job.
        """
        try:
            return msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise StoreDamagedError(f"a job cannot be read: {error}", run_id=run_id) from error


@attrs.frozen
class JobSubmission(JobHead):
    """A job as its client submitted it.

    Attributes:
        items: The work items; each has one result.
    """

    items: list[Plain]

    def to_plain(self) -> dict[str, Plain]:
        """Return the job in its stored form."""
        return super().to_plain() | {"items": self.items}

    def is_same_work(self, other: JobSubmission) -> bool:
        """Whether both jobs run the same function on the same items; the options may differ."""
        return self.function == other.function and self.items == other.items


def job_records(submission: JobSubmission, at: float) -> tuple[Record, Record]:
    """Return the records of `JOB_STREAM`: the submission, and its head, which every fold keeps."""
    whole = Record(kind=RecordKind.BATCH, at=at, index=0, metadata=submission.to_plain())
    return whole, head_record(submission, at)


def head_record(submission: JobSubmission, at: float) -> Record:
    """Return the head record of a submission; the newest head has the options that count."""
    metadata = JobHead.to_plain(submission)
    return Record(kind=RecordKind.FINISH, at=at, last_index=0, metadata=metadata)


def head_of(view: RunView) -> JobHead | None:
    """Read the head of a job; None: its run has none, so the job was never acknowledged.

    Raises:
        StoreDamagedError: the head is damaged.
    """
    entry = view.streams.get(JOB_STREAM)
    if entry is None or entry.progress.status is not Status.COMPLETE:
        return None
    return JobHead.from_plain(entry.progress.metadata, view.run_id)


def check_function(name: str) -> str:
    """Return a function's name if it is well-formed; only a worker knows whether it exists.

    Raises:
        NotAllowedError: the name is not ``module:function``.
    """
    text("function", name)
    if len(name) > MAX_NAME_CHARS or _FUNCTION.fullmatch(name) is None:
        raise NotAllowedError(f"a function is named 'module:function', not {name[:80]!r}")
    return name


def as_sent(value: object, path: str, *, allow_nan: bool = False) -> tuple[Plain, int]:
    """Return a copy of an item or a result as the other side decodes it, and its size in bytes.

    Args:
        value: JSON-like.
        path: The name of the value in error messages.
        allow_nan: Whether NaN and infinity are allowed in it.

    Raises:
        NotEncodableError: the value is not JSON-like.
        ValueError: the value is too large.
    """
    plain = as_plain(value, path, depth=STORED_DEPTH, allow_nan=allow_nan)
    size = len(msgspec.msgpack.encode(plain))
    if size > MAX_VALUE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, over {MAX_VALUE_BYTES:,}: put it into a file or into "
            "the state, and pass its name",
        )
    return plain, size


def checked_submission(
    function: str, items: Iterable[object], options: JobOptions
) -> JobSubmission:
    """Build a job that a foreman accepts; its items are copies.

    Raises:
        NotEncodableError, NotAllowedError, TypeError, ValueError: a foreman would refuse it.
    """
    name = check_function(function)
    values = several("items", items, "JSON-like values")
    if len(values) > MAX_JOB_ITEMS:
        raise ValueError(f"a job has at most {MAX_JOB_ITEMS:,} items, not {len(values):,}")
    plain: list[Plain] = []
    total = 0
    for place, value in enumerate(values):
        item, size = as_sent(value, f"items[{place}]")
        plain.append(item)
        total += size
    if total > MAX_JOB_BYTES:
        raise ValueError(f"the items have {total:,} bytes, over {MAX_JOB_BYTES:,}")
    return JobSubmission(name, options, plain)


class JobArguments(TypedDict, total=False):
    """The arguments of a client that are options of a job; `Client.map` describes them."""

    checkpoint_interval_s: float | None
    errors: Literal["raise", "collect"]
    attempts: int
    losses: int
    max_age_s: float
    keep_checkpoints: bool
    trace: Mapping[str, str] | None


def span(name: str, value: float, *, is_zero_allowed: bool = True) -> float:
    """Return a time span in seconds that a foreman accepts.

    Raises:
        TypeError, ValueError: the value is not such a time span.
    """
    found = seconds(name, value, is_zero_allowed=is_zero_allowed)
    if found > MAX_INTERVAL_S:
        raise ValueError(f"{name} must be at most {MAX_INTERVAL_S:g} seconds, not {shown(value)}")
    return found


def _interval(name: str, value: float | None) -> float | None:
    return None if value is None else span(name, value)


def _trace(name: str, value: Mapping[str, str] | None) -> dict[str, str]:
    entries = mapping(name, value or {})
    for key, entry in entries.items():
        text("a name of trace", key)
        text("a value of trace", entry, is_empty_allowed=True)
    return entries


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "checkpoint_interval_s": _interval,
    "errors": partial(one_of, choices=("raise", "collect")),
    "attempts": partial(whole_number, least=1, most=MAX_ATTEMPTS),
    "losses": partial(whole_number, least=1, most=MAX_LOSSES),
    "max_age_s": partial(span, is_zero_allowed=False),
    "keep_checkpoints": flag,
    "trace": _trace,
}
"""Argument -> its check, which returns the option."""


def job_options(**arguments: Unpack[JobArguments]) -> JobOptions:
    """Build the options of a job from a client's arguments; `JobOptions` has the defaults.

    Raises:
        TypeError, ValueError: an argument is wrong; the message has its name and value.
    """
    if unknown := arguments.keys() - _CHECKS.keys():
        raise TypeError(f"a job has no option {', '.join(sorted(unknown))}: see Client.map")
    options = {name: _CHECKS[name](name, value) for name, value in arguments.items()}
    try:  # finds everything else that the foreman would refuse
        return msgspec.convert(options, JobOptions)
    except msgspec.ValidationError as error:
        raise ValueError(f"the options of a job cannot be sent: {error}") from error


def parts_of(items: Sequence[Plain]) -> Iterable[tuple[int, list[Plain]]]:
    """Split items into messages; each comes with the index of its first item."""
    part: list[Plain] = []
    first = size = 0
    for place, item in enumerate(items):
        part.append(item)
        size += len(msgspec.msgpack.encode(item))
        if size >= ITEMS_BYTES:
            yield first, part
            part, first, size = [], place + 1, 0
    if part:
        yield first, part


async def read_submission(store: Store, job_id: str) -> JobSubmission | None:
    """Read a job as it was submitted, with its newest options; None: it is absent or incomplete.

    Raises:
        StoreDamagedError: a record of the submission is damaged.
    """
    stored = await store.read_run(job_id)
    if stored is None:
        return None
    newest: dict[str, Plain] = {}
    async with aclosing(iter_records(store, job_id, stored.generation, JOB_STREAM)) as records:
        async for _, record in records:
            if record.kind is RecordKind.FINISH:
                newest = newest or record.metadata
            if record.kind is RecordKind.BATCH:
                return JobSubmission.from_plain(record.metadata | newest, job_id)
    return None
