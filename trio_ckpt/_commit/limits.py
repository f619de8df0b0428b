"""The limits of a run: what it may cost, how long a session may take, what counts as an outage.

This is the pure part: what the limits are, and which of them is reached.  `LimitWatch` counts for
an open run (`trio_ckpt._commit.limit_watch`).

A run that reaches a limit begins a stop: loops get no further batch, and the open ones are finished
and saved, as long as they end within `grace_s`.  So what is counted goes over a limit by what the
batches add that were open then, one for each task of `run_batches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, cast

import attrs
import msgspec

from .._journal.record import OF_SESSION
from .._util.arguments import (
    checked_by,
    instance,
    mapping,
    moment,
    optional,
    ratio,
    seconds,
    shown,
    text,
    whole_number,
)
from .._util.exact_sum import ZERO, ExactSum, Number
from .._util.plain import Plain
from .._util.text import duration, number, printable

_NOTHING: Mapping[str, Number] = {}
MAX_WINDOW = 1_000_000  # attempts of which a share is taken: one byte each is kept


class LimitReached(msgspec.Struct, frozen=True):
    """Which limit stops a run.

    Attributes:
        limit: The field of `Limits`.
        reason: The limit and what reached it, as text.
    """

    limit: str
    reason: str


def _spent(spent: Mapping[str, Number]) -> Mapping[str, Number]:
    given = mapping("spent", spent)
    for name, most in given.items():
        ratio(f"spent[{text('a name in spent', name)!r}]", most)
    return MappingProxyType(given)


def _share(
    _: object, attribute: attrs.Attribute[tuple[float, int] | None], value: tuple[float, int] | None
) -> None:
    if value is None:
        return
    if not isinstance(cast("object", value), tuple) or len(cast("tuple[object, ...]", value)) != 2:
        raise TypeError(
            f"{attribute.name} must be a share and a number of attempts, such as (0.2, 200), not "
            f"{shown(value)}"
        )
    if ratio(f"the share in {attribute.name}", value[0]) >= 1:
        raise ValueError(f"the share in {attribute.name} must be below 1, not {shown(value[0])}")
    whole_number(f"the number in {attribute.name}", value[1], least=1, most=MAX_WINDOW)


@attrs.frozen(kw_only=True)
class Limits:
    """When a run stops by itself, in good order and with exit code 75; see `open_run`.

    As after a signal, batches that are open longer than `grace_s` of the run are cut off; the exit
    code says so.

    Attributes:
        spent: The most that all attempts of all sessions may cost, by the names that
            ``batch.spend`` gives, as in ``{"cost_usd": 50}``.  A start of a run that has spent it
            hands out nothing.
        batches: How many batches one session confirms or skips.
        runtime_s: How long one session takes, in seconds.
        stop_at: When a session has to be over: a datetime with a time zone, such as the end of
            the job of a scheduler.
        min_free_bytes: How many bytes must be free where the store and the outputs are, on the
            disks of this machine.
        consecutive_failures: So many failed attempts with nothing confirmed between them, in all
            streams together, are an outage.  What failed or was skipped in it is re-queued.
        failure_share: A share, and a number of attempts: when more than this share of the newest
            so many attempts have failed, as in ``(0.2, 200)``.

    A session begins to stop before `runtime_s` or `stop_at` is reached: as long before as its
    longest attempt took until then, at most `grace_s` of the run, so that what is open can end.

    An attempt fails by an exception or by ``batch.fail``.  ``batch.skip`` with a text is a
    decision, which is not counted; with an exception it is a failure.
    """

    spent: Mapping[str, Number] = attrs.field(default=_NOTHING, converter=_spent)
    batches: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(checked_by(whole_number, least=1))
    )
    runtime_s: float | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(checked_by(seconds, is_zero_allowed=False)),
    )
    stop_at: datetime | None = attrs.field(default=None, validator=optional(moment))
    min_free_bytes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(checked_by(whole_number, least=1))
    )
    consecutive_failures: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(checked_by(whole_number, least=1))
    )
    failure_share: tuple[float, int] | None = attrs.field(default=None, validator=_share)


def plain_limits(limits: Limits) -> dict[str, Plain]:
    """The limits that are set, as the record of a session has them."""
    plain: dict[str, Plain] = {
        f"spent.{name}": _plain_number(most) for name, most in limits.spent.items()
    }
    for name in ("batches", "runtime_s", "min_free_bytes", "consecutive_failures"):
        value: Number | None = getattr(limits, name)
        if value is not None:
            plain[name] = _plain_number(value)
    if limits.stop_at is not None:
        plain["stop_at"] = limits.stop_at.isoformat(timespec="seconds")
    if limits.failure_share is not None:
        plain["failure_share"] = [_plain_number(value) for value in limits.failure_share]
    return plain


def _plain_number(value: Number) -> Number:
    """A number of any class, such as one of NumPy, as a record can have it."""
    whole = int(value)
    return whole if whole == value and whole < 2**63 else float(value)


def changed_limits(limits: Limits, most: Mapping[str, Number]) -> Limits:
    """Limits some of which are others: ``batches`` and ``runtime_s`` by name, the rest is spent.

    Args:
        limits: The limits.
        most: The amounts by name; of ``batches`` 5.0 is 5: over REST numbers come as floats.

    Raises:
        ValueError, TypeError: an amount is not one, or a name is that of another limit.
    """
    most = {name: _plain_number(amount) for name, amount in most.items()}
    for name in most:
        if name not in OF_SESSION and name in attrs.fields_dict(Limits):
            raise ValueError(f"the limit {name} cannot be changed while a session is open")
    spent = {name: amount for name, amount in most.items() if name not in OF_SESSION}
    of_session: dict[str, Any] = {name: most[name] for name in OF_SESSION if name in most}
    return attrs.evolve(limits, spent={**limits.spent, **spent}, **of_session)


def checked_limits(limits: Limits | None) -> Limits | None:
    """Check the argument ``limits``; None: the run has none.

    Raises:
        TypeError: it is something else than `Limits`.
    """
    if limits is None:
        return None
    given = instance("limits", limits, Limits, "Limits")
    return None if given == Limits() else given


def over_spent(limits: Limits, spent: Mapping[str, ExactSum]) -> LimitReached | None:
    """The limit on what is spent that is reached; None: none is."""
    for name, most in limits.spent.items():
        total = spent.get(name, ZERO).value
        if total >= most:
            what = f"{number(total)} of {number(most)} {printable(name)}"
            return LimitReached("spent", f"{what} are spent")
    return None


def over_reserved(
    limits: Limits,
    spent: Mapping[str, ExactSum],
    reserved: Mapping[str, ExactSum],
    change: Mapping[str, ExactSum],
) -> LimitReached | None:
    """The limit on what is spent that has no room for a reservation; None: there is room.

    Args:
        limits: The limits.
        spent: What is spent.
        reserved: What open attempts have reserved.
        change: What the reservation adds to that; not positive where earlier ones have cost less.
    """
    for name, most in limits.spent.items():
        more = change.get(name, ZERO).value
        taken = spent.get(name, ZERO).with_sum(reserved.get(name, ZERO))
        if more > 0 and taken.with_sum(change[name]).value > most:
            what = f"{number(taken.value)} of {number(most)} {printable(name)}"
            return LimitReached(
                "spent", f"{what} are spent or reserved, which leaves no room for {number(more)}"
            )
    return None


def batches_done(limits: Limits, count: int) -> LimitReached | None:
    """The limit on the batches of a session, if it is reached."""
    if limits.batches is None or count < limits.batches:
        return None
    return LimitReached("batches", f"{number(count)} of {number(limits.batches)} batches are done")


def too_little_free(limits: Limits, free_bytes: int, folder: str) -> LimitReached | None:
    """The limit on free space, if it is reached in a folder."""
    least = limits.min_free_bytes
    if least is None or free_bytes >= least:
        return None
    free = f"{number(free_bytes)} bytes are free in {printable(folder)}"
    return LimitReached("min_free_bytes", f"{free}, fewer than {number(least)}")


def out_of_time(limits: Limits, *, is_runtime: bool) -> LimitReached:
    """The deadline of a session, of which either `runtime_s` or `stop_at` comes first."""
    if is_runtime and limits.runtime_s is not None:
        return LimitReached("runtime_s", f"its {duration(limits.runtime_s)} are over")
    at = "" if limits.stop_at is None else limits.stop_at.isoformat(timespec="seconds")
    return LimitReached("stop_at", f"its time ends at {at}")


@attrs.define(eq=False, repr=False)
class FailureCounter:
    """Counts failures: in a row, and among the newest attempts.

    Attributes:
        in_a_row: How many attempts have failed with none confirmed between them.
    """

    _limits: Limits
    in_a_row: int = attrs.field(default=0, init=False)
    _newest: bytearray = attrs.field(factory=bytearray, init=False)  # a ring: 1 for a failure
    _at: int = attrs.field(default=0, init=False)
    _failed: int = attrs.field(default=0, init=False)  # of those in the ring

    def add(self, *, is_failure: bool) -> None:
        """Count an attempt that is confirmed, or has failed."""
        self.in_a_row = self.in_a_row + 1 if is_failure else 0
        share = self._limits.failure_share
        if share is None:
            return
        self._failed += is_failure
        if len(self._newest) < share[1]:
            self._newest.append(is_failure)
            return
        self._failed -= self._newest[self._at]
        self._newest[self._at] = is_failure
        self._at = (self._at + 1) % share[1]

    def reached(self, last_error: str) -> LimitReached | None:
        """The limit on failures that is reached; None: none is.

        Args:
            last_error: What went wrong last, as text.
        """
        most, share = self._limits.consecutive_failures, self._limits.failure_share
        if most is not None and self.in_a_row >= most:
            failed = f"{number(self.in_a_row)} attempts in a row have failed"
            return LimitReached("consecutive_failures", f"{failed}, the last one by {last_error}")
        # So many failures are over the share also where the attempts to come all succeed.
        if share is not None and self._failed / share[1] > share[0]:
            failed = f"{number(self._failed)} of the newest {number(len(self._newest))} attempts"
            return LimitReached("failure_share", f"{failed} have failed, the last by {last_error}")
        return None
