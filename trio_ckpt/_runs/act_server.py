"""The server of acts on an open run: a Unix socket beside a local store.

One connection is one act: a line of JSON comes, a line goes back.  Who sends anything else, or
nothing in time, gets nothing.  No failure here ends the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from .._journal.acts import MAX_LINE_BYTES, Act, ActReply, decode_act, encode_line
from .._util.errors import StoreError
from .._util.exceptions import text_of
from .._util.forks import unshare
from .._util.log import at, get_logger
from .._util.threads import run_blocking
from .._util.uninterrupted import uninterrupted
from ..stores import folder_of
from ..stores._local.control_socket import is_of_other_user, listen_for_acts, remove_socket
from .open_run import OpenRun
from .session import SessionRecorder

if TYPE_CHECKING:
    from .steering import Steering

log = get_logger(__name__)

MAX_CONNECTIONS = 16  # a user types one command at a time
RECEIVE_S = 5.0  # a command sends its line at once
SEND_S = 5.0

BUSY = ActReply(False, "too many processes ask at once: try again")


@uninterrupted
async def serve_acts(run: OpenRun, session: SessionRecorder) -> None:
    """Do what other processes ask of a run, until cancelled.

    Where the store has an inbox they ask there.  Else they ask by a socket; where none can be made
    this ends with a line of the log.

    Args:
        run: The run.
        session: Saves what is of the run as a whole.

    Cancellation: ends it; an act that has begun is done or not.
    """
    every_s = run.store.inbox_every_s
    if every_s is not None:
        from .act_inbox import look_for_acts  # only a store without a folder has an inbox
        from .steering import Steering

        await look_for_acts(Steering(run, session), every_s)
    run_id, folder = run.run_id, folder_of(run.store.url)
    if not (folder and run.store.has_live):
        return
    try:
        listener = await run_blocking(listen_for_acts, Path(folder), run_id)
    except (StoreError, OSError) as error:
        log.info(
            "run %r cannot be steered by trio-ckpt ctl: %s",
            run_id,
            text_of(error),
            extra=at(run_id),
        )
        return
    unshare(listener)
    server = _ActServer(run, session)
    try:
        async with trio.open_nursery() as nursery:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            await trio.serve_listeners(server.answer, listeners, handler_nursery=nursery)
    except* Exception as errors:  # no error here may end the run
        log.warning(
            "run %r cannot be steered any more: %s",
            run_id,
            text_of(errors.exceptions[0]),
            extra=at(run_id),
        )
    finally:
        listener.close()
        with trio.CancelScope(shield=True):
            await _remove(folder, run_id)


async def _remove(folder: str, run_id: str) -> None:
    try:
        await run_blocking(remove_socket, Path(folder), run_id)
    except (StoreError, OSError) as error:  # the next owner removes it
        log.debug(
            "the socket of run %r was not removed: %s", run_id, text_of(error), extra=at(run_id)
        )


@attrs.define(eq=False, repr=False)
class _ActServer:
    """Answers those who connect.

    Attributes:
        run: The run.
        session: Saves what is of the run as a whole.
    """

    run: OpenRun
    session: SessionRecorder
    _steering: Steering | None = attrs.field(default=None, init=False)
    _connections: int = attrs.field(default=0, init=False)

    @property
    def steering(self) -> Steering:
        """Does the acts; made by the first one."""
        if self._steering is None:
            from .steering import Steering  # no act comes to most runs

            self._steering = Steering(self.run, self.session)
        return self._steering

    async def answer(self, stream: trio.SocketStream) -> None:
        """Answer one connection; errors of its other side end it."""
        unshare(stream.socket)
        self._connections += 1
        try:
            if is_of_other_user(stream.socket):
                return
            if self._connections > MAX_CONNECTIONS:
                await _send(stream, BUSY)
                return
            act = await _receive(stream)
            if act is not None:
                await _send(stream, await self.steering.do(act))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            run_id = self.run.run_id
            log.debug(
                "run %r: a connection ended badly: %s", run_id, text_of(error), extra=at(run_id)
            )
        except Exception as error:  # a bug: it ends this connection, and others are answered
            run_id = self.run.run_id
            log.warning("run %r: an act failed: %s", run_id, text_of(error), extra=at(run_id))
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)


async def _receive(stream: trio.SocketStream) -> Act | None:
    """Receive an act; None: no such line came in time."""
    received = bytearray()
    with trio.move_on_after(RECEIVE_S):
        while b"\n" not in received and len(received) <= MAX_LINE_BYTES:
            some = await stream.receive_some(MAX_LINE_BYTES)
            if not some:
                return None
            received += some
        line, end, rest = bytes(received).partition(b"\n")
        return decode_act(line) if end and not rest and len(line) < MAX_LINE_BYTES else None
    return None


async def _send(stream: trio.SocketStream, reply: ActReply) -> None:
    with trio.move_on_after(SEND_S):
        await stream.send_all(encode_line(reply))
