"""The guard around the application: every request is authorized, limited in time, and answered.

Every failure inside leaves as JSON with a code and a message: no traceback, no text of an
unexpected exception.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import trio
from starlette.responses import Response

from .._util.log import get_logger
from ._access import Access, AccessDenied, AccessRole
from ._answers import Problem, Refusal, encode_answer

log = get_logger(__name__)

REQUEST_TIMEOUT_S = 15.0  # a store on a slow disk has some thousand records to read
ACTION_TIMEOUT_S = 120.0  # an act waits for the process of its run, see `steer`
EVENTS_PATH = "/api/events"  # answers until the client disconnects

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)

INTERNAL = AccessDenied(500, "internal", "the monitor itself failed; its log says how")


def guarded(app: App, access: Access) -> App:
    """The application behind the rules."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        reply = _Reply(scope, receive, send)
        decision = access.authorize(scope)
        if isinstance(decision, AccessDenied):
            await reply.refuse(decision)
            return
        scope["state"] = {"role": decision}
        await _answer(app, scope, receive, reply)

    return guard


async def _answer(app: App, scope: Scope, receive: Receive, reply: _Reply) -> None:
    timeout_s = REQUEST_TIMEOUT_S if scope["method"] != "POST" else ACTION_TIMEOUT_S
    if scope["path"] == EVENTS_PATH:
        timeout_s = math.inf
    limit = trio.move_on_after(timeout_s)
    try:
        with limit:
            await app(scope, receive, reply.send)
    except Exception:
        log.exception("answering %s failed", scope["method"])
        await reply.refuse(INTERNAL)
    if limit.cancelled_caught:
        await reply.refuse(
            AccessDenied(503, "too_slow", f"no answer within {timeout_s:g} s: try again later")
        )


class _Reply:
    """The way back to the client; adds the headers of every answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            own = {name for name, _ in message["headers"]}
            more = [entry for entry in SECURITY_HEADERS if entry[0] not in own]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def refuse(self, refused: AccessDenied) -> None:
        """Answer with a refusal, unless an answer has begun: then the connection is cut."""
        if not self._has_begun:
            await refusal(refused)(self._scope, self._receive, self.send)


_HEADERS = {
    401: {"www-authenticate": 'Bearer realm="trio_ckpt"'},
    405: {"allow": "GET, HEAD, POST"},
}


def refusal(refused: AccessDenied, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that refuses a request."""
    headers = _HEADERS.get(refused.status) if headers is None else headers
    return Response(refusal_body(refused), refused.status, headers, "application/json")


def refusal_body(refused: AccessDenied) -> bytes:
    """What a refusal says."""
    return encode_answer(Refusal(error=Problem(code=refused.code, message=refused.message)))


def role_of(scope: Scope) -> AccessRole:
    """As whose a request was let in."""
    role: AccessRole = scope["state"]["role"]
    return role
