"""A peer's connection to its foreman: connect, shake hands, talk; reconnect when it is lost."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn

import attrs
import trio

from ..._util.exceptions import text_of
from ..._util.log import get_logger
from ..._util.text import one_line, printable
from .errors import ConnectionLostError, HandshakeRefusedError, ProtocolError
from .link import HANDSHAKE_S, Link, Socket, open_link
from .message import Goodbye, Hello, Message, Refused, Welcome
from .protocol import Connection
from .tables import PeerRole

log = get_logger(__name__)

Dial = Callable[[], AbstractAsyncContextManager[Socket]]

FIRST_WAIT_S = 0.1  # a foreman that is restarted is back soon
LONGEST_WAIT_S = 3.0  # with its jitter shorter than a foreman waits after its start
JITTER = 0.5  # so that many peers do not reconnect at once
PASSING = frozenset({"busy"})  # codes of refusals that pass


@attrs.define(eq=False)
class ReconnectingSession:
    """One peer, across all its connections.

    Attributes:
        dial: Opens a socket.
        role: The role of this peer.
        hello: Makes the first message of a connection.
        opened: Called with each accepted connection.
        received: Called with each message; an exception of it ends the peer.
        closed: Called when a connection is lost.
        link: The connection; None: there is none now.
        problem: Why the last attempt to connect failed.
    """

    dial: Dial
    role: PeerRole
    hello: Callable[[], Hello]
    opened: Callable[[Link], None]
    received: Callable[[Message], None]
    closed: Callable[[], None]
    link: Link | None = attrs.field(default=None, init=False)
    problem: str = attrs.field(default="nothing was heard of it", init=False)
    is_leaving: bool = attrs.field(default=False, init=False)
    refusal: HandshakeRefusedError | None = attrs.field(default=None, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected, reconnecting as needed, until `leave` is called.

        `task_status` is started when the foreman accepts the peer for the first time.

        Raises:
            HandshakeRefusedError: the foreman refuses this peer for good.

        Cancellation: ends the connection.
        """
        wait_s, is_told = FIRST_WAIT_S, False
        while not self.is_leaving:
            try:
                async with self.dial() as socket, open_link(socket, Connection(self.role)) as link:
                    await self._greet(link)
                    wait_s = FIRST_WAIT_S
                    if not is_told:
                        is_told = True
                        task_status.started()
                    await self._talk(link)
            except (ConnectionLostError, ProtocolError) as error:
                self._log_once(error, wait_s)
            except HandshakeRefusedError as error:
                if error.code not in PASSING:
                    raise
                log.info("%s", one_line(str(error)))
            if self._has_left():
                return
            await trio.sleep(wait_s * (1 + random.random() * JITTER))  # noqa: S311  # not a secret
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def _log_once(self, error: Exception, wait_s: float) -> None:
        """Log that there is no connection, once for each time that it is lost or refused."""
        is_news = wait_s == FIRST_WAIT_S and not self._has_left()
        level = logging.WARNING if is_news else logging.DEBUG
        text = one_line(text_of(error))
        log.log(level, "no connection to the foreman; retrying: %s", text)
        self.problem = text

    def _has_left(self) -> bool:
        """Whether `leave` was called."""
        return self.is_leaving

    async def _greet(self, link: Link) -> None:
        link.send(self.hello())
        with trio.move_on_after(HANDSHAKE_S):
            received = await link.receive()
            link.consumed(received)
            match received.message:
                case Welcome() as welcome:
                    link.set_times(welcome.heartbeat_s, welcome.silence_s)
                    return
                case Refused(code, reason):
                    raise HandshakeRefusedError(printable(code), one_line(reason))
                case _:
                    pass
        raise ConnectionLostError("the foreman did not answer HELLO")

    async def _talk(self, link: Link) -> NoReturn:
        self.link = link
        try:
            self.opened(link)
            while True:
                received = await link.receive()
                if isinstance(received.message, Goodbye):
                    reason = received.message.reason or "it ends"
                    raise ConnectionLostError(f"the foreman said goodbye: {reason}")
                self.received(received.message)
                link.consumed(received)
        finally:
            self.link = None
            self.closed()

    def send(self, message: Message) -> bool:
        """Send a message if there is a connection; return whether there is."""
        return self.link is not None and self.link.send(message)

    async def leave(self, reason: str) -> None:
        """Say goodbye; `run` then ends.

        Cancellation: shielded, for a short time.
        """
        self.is_leaving = True
        if self.link is not None:
            await self.link.say_goodbye(reason)
