"""A session: one open-to-close of a run, what it found, and how it ended.

Sessions are records of the run's own stream.  One without an end was killed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Collection
from typing import Any, Literal

import attrs
import trio

from ._config import config_digest, diff_config
from ._errors import ConfigChangedError, RunStoppedError
from ._gate import Way
from ._progress import Progress
from ._records import Kind, Record
from ._saver import Lane, Saver
from ._stream import way_of
from ._values import RUN_STREAM
from .abc import RunView

log = logging.getLogger("trio_ckpt.session")

KILLED = "was killed"

OnConfigChange = Literal["refuse", "restart", "accept"]


@attrs.frozen
class Found:
    """What `open_run` found in the store.

    Attributes:
        sessions: How many there were before this one; 0: the run is new.
        streams: How many streams have records.
        confirmed: Batches that are durable.
        skipped: Batches given up.
        to_retry: Batches that failed and may run again.
        records: Records produced.
        last_end: How the last session ended, in words; None: there was none.
    """

    sessions: int
    streams: int
    confirmed: int
    skipped: int
    to_retry: int
    records: int
    last_end: str | None

    @property
    def was_killed(self) -> bool:
        """Whether the last session left no word of its end."""
        return self.last_end == KILLED

    def __str__(self) -> str:
        if self.last_end is None:
            return "nothing saved yet"
        return (
            f"{self.confirmed:,} batches done, {self.skipped:,} skipped, {self.to_retry:,} to "
            f"retry, {self.records:,} records; streams: {self.streams:,}; "
            f"session {self.sessions} {self.last_end}"
        )


def _is_to_retry(progress: Progress, index: int) -> bool:
    last = progress.last_index
    return index not in progress.skipped and (last is None or index <= last)


def look(view: RunView | None) -> Found:
    """Sum up what is saved of a run."""
    if view is None:
        return Found(0, 0, 0, 0, 0, 0, None)
    parts = [entry.progress for key, entry in view.streams.items() if key != RUN_STREAM]
    own = view.streams.get(RUN_STREAM)
    facts = own.progress.metadata if own is not None else {}
    return Found(
        sessions=int(facts.get("session", 0)),
        streams=len(parts),
        confirmed=sum(len(progress.confirmed) for progress in parts),
        skipped=sum(len(progress.skipped) for progress in parts),
        to_retry=sum(_is_to_retry(p, index) for p in parts for index in p.failures),
        records=sum(progress.records for progress in parts),
        last_end=facts.get("ended", KILLED) if facts else None,
    )


def is_restart(
    view: RunView | None,
    plain: dict[str, Any],
    tunable: Collection[str],
    policy: OnConfigChange,
    run_id: str,
) -> bool:
    """Compare the configuration with that of the last session; whether to start over.

    Raises:
        ConfigChangedError: a field that may not change has, and the policy is to refuse.
    """
    own = view.streams.get(RUN_STREAM) if view is not None else None
    if own is None or "config" not in own.progress.metadata:
        return False
    changes = diff_config(own.progress.metadata["config"], plain)
    refused = tuple(c for c in changes if c[0].split(".")[0] not in tunable)
    for name, was, now in changes:
        log.info("config of run %r: %s: %s -> %s", run_id, name, was, now)
    if refused and policy == "refuse":
        raise ConfigChangedError(run_id, refused)
    return bool(refused) and policy == "restart"


class Session:
    """Writes down that a session began, and how it ended."""

    def __init__(
        self,
        saver: Saver,
        view: RunView | None,
        *,
        number: int,
        config: dict[str, Any],
        output_dir: str | None,
    ) -> None:
        own = view.streams.get(RUN_STREAM) if view is not None else None
        self._saver = saver
        self._lane: Lane = saver.add_lane(RUN_STREAM, own.progress if own else Progress())
        self._facts: dict[str, Any] = {
            "session": number,
            "config": config,
            "config_digest": config_digest(config),
            "output_dir": output_dir,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": time.time(),
        }

    async def begin(self) -> None:
        """Save that it began, and with it a new generation if there is one."""
        await self._saver.save(self._lane, _fact(Kind.SESSION, self._facts))

    async def end(self, error: BaseException | None) -> None:
        """Save how it ended, best effort.

        Cancellation: shielded.
        """
        if self._saver.poison is not None:
            return
        facts = {**self._facts, "ended": _how_ended(error), "at": time.time()}
        with trio.CancelScope(shield=True):
            try:
                await self._saver.save(self._lane, _fact(Kind.END, facts))
            except Exception as problem:
                log.warning("how the session ended could not be saved: %s", problem)


def _fact(kind: Kind, facts: dict[str, Any]) -> Record:
    return Record(kind=kind, at=time.time(), metadata=facts)


def _how_ended(error: BaseException | None) -> str:
    if error is None:
        return "ended"
    if isinstance(error, RunStoppedError):
        return "was stopped"
    if way_of(error) is Way.CANCEL:
        return "was cancelled"
    return f"ended by {type(error).__qualname__}"
