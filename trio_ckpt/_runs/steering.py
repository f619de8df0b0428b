"""What other processes may ask of an open run: each act is a record before it takes effect.

Theory of operation
===================

An act is saved first, and done when its record is durable.  So a kill comes before the record, and
nothing has happened, or after it: then the next start knows of the act.  A run that was paused
starts paused.  What a session is to know of an act goes into its metadata before the act is saved:
the record of its end, which may be saved with the act, has it, too.

Acts are done one after the other.  They change only what the loops look at anyway, so that a run
that no process steers has no work from it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import attrs
import msgspec
import trio

from .._commit.limits import plain_limits
from .._journal.acts import (
    Act,
    ActRefusedError,
    ActReply,
    act_note,
    act_text,
    paused_text,
    plain_act,
)
from .._journal.record import PAUSED
from .._util.errors import TrioCkptError
from .._util.exceptions import text_of
from .._util.log import at, get_logger
from .._util.plain import Plain
from .._util.uninterrupted import uninterrupted
from .open_run import OpenRun
from .session import SessionRecorder

log = get_logger(__name__)

MAX_STREAMS = 100  # in a status: those that are open


class _Deed(Protocol):
    async def __call__(self, act: Act) -> str: ...


@uninterrupted
@attrs.define(eq=False)
class Steering:
    """Does acts on an open run.

    Attributes:
        run: The run.
        session: Saves what is of the run as a whole.
    """

    run: OpenRun
    session: SessionRecorder
    _one_by_one: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    async def do(self, act: Act) -> ActReply:
        """Do an act; returns what was done, or why it was not.

        Durability: when this returns an act that was done is durable.
        Cancellation: as for `GroupCommitter.save`: an act is done or not.
        """
        if act.do == "status":
            return ActReply(True, f"run {self.run.run_id!r} is running", self._status())
        async with self._one_by_one:
            try:
                self.run.check_open()
                text = await self._deeds[act.do](msgspec.structs.replace(act, at=time.time()))
            except (TrioCkptError, ValueError, trio.ClosedResourceError) as error:
                return ActReply(False, text_of(error))
        return ActReply(True, text)

    @property
    def _deeds(self) -> Mapping[str, _Deed]:
        return {"pause": self._pause, "resume": self._resume, "stop": self._stop}

    # -- acts on the run as a whole --------------------------------------------------------------

    async def _pause(self, act: Act) -> str:
        if paused := paused_text(self.session.metadata):
            raise ActRefusedError(f"it is paused already, {paused}")
        await self._save(act, {PAUSED: plain_act(act)})
        self.run.stop.pause()
        return "paused: nothing more is handed out; what is open goes on"

    async def _resume(self, act: Act) -> str:
        if PAUSED not in self.session.metadata:
            raise ActRefusedError("it is not paused")
        await self._save(act, {PAUSED: None})
        self.run.stop.resume()
        return "resumed"

    async def _stop(self, act: Act) -> str:
        if self.run.stop.is_requested:
            raise ActRefusedError("a stop is under way already")
        await self._save(act)
        self.run.stop.request()
        return "stopping in good order: what is open is finished and saved"

    async def _save(self, act: Act, facts: Mapping[str, Plain] = MappingProxyType({})) -> None:
        """Save the record of an act, and log it.

        Args:
            act: The act.
            facts: What it changes in the metadata of the session; None: the field is removed.
        """
        metadata = self.session.metadata
        before = {name: metadata.get(name) for name in facts}
        _set_facts(metadata, facts)
        try:
            await self.session.save(act_note(act))
        except BaseException:
            _set_facts(metadata, before)
            raise
        log.info("run %r: %s", self.run.run_id, act_text(act), extra=at(self.run.run_id))
        self.run.touch()

    # -- what is asked and changes nothing -------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        run, stopping = self.run, self.run.stop.stopping()
        return {
            "session": self.session.metadata["session"],
            "paused": self.session.metadata.get(PAUSED),
            "stopping": None if stopping is None else {"open": stopping.open},
            "limits": {} if run.limits is None else plain_limits(run.limits.limits),
            "streams": [
                {
                    "stream": list(key),
                    "confirmed": len(one.stream_log.progress.confirmed),
                    "skipped": len(one.stream_log.progress.skipped),
                    "left": one.stream_log.progress.left,
                    "open": len(one.open),
                }
                for key, one in list(run.stream_table.opened.items())[:MAX_STREAMS]
            ],
        }


def _set_facts(metadata: dict[str, Plain], facts: Mapping[str, Plain]) -> None:
    for name, value in facts.items():
        metadata[name] = value
        if value is None:
            del metadata[name]


def begin_paused(run: OpenRun, session: SessionRecorder) -> None:
    """Let a run that was paused start paused, and say so."""
    paused = paused_text(session.metadata)
    if not paused:
        return
    run.stop.pause()
    log.warning(
        "run %r starts paused %s; nothing is handed out until: trio-ckpt ctl STORE %s resume",
        run.run_id,
        paused,
        shlex.quote(run.run_id),
        extra=at(run.run_id),
    )
