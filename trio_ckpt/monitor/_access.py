"""Who may see and do what: one pure function that every request passes before anything else.

Theory of operation
===================

Another page in the browser of a viewer must not be able to reach the monitor.  So every request
is checked in this order, whatever its path and method:

* the request is HTTP/1 without a body and with a method that is known;
* its ``Host`` is one of ours: a foreign name that resolves to 127.0.0.1 (DNS rebinding) is not;
* its ``Origin``, where the browser sends one, is our own;
* but for the page's own files it carries the secret, in ``Authorization: Bearer``.  Never in
  a URL, which ends up in logs, and never in a cookie, which a browser sends unasked.

Secrets are compared by their digests in constant time.  That of viewers allows no action.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import attrs

from .._util.arguments import text

MIN_SECRET_CHARS = 16  # what is guessed by trying is shorter
MAX_TARGET_BYTES = 4_096  # path and query together
OPEN_PATHS = frozenset({"/", "/monitor.css", "/monitor.js", "/icon.svg"})
METHODS = frozenset({"GET", "HEAD", "POST"})
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
DEFAULT_PORTS = (80, 443)  # that browsers leave out of Host and Origin

T = TypeVar("T")


class AccessRole(enum.Enum):
    """What a request may do."""

    PUBLIC = "public"  # read the page's own files
    VIEWER = "viewer"
    ACTOR = "actor"


@attrs.frozen
class AccessDenied:
    """Why a request is refused."""

    status: int
    code: str
    message: str


def check_secret(secret: str) -> str:
    """Return a secret that is good enough.

    Raises:
        TypeError: it is not a str.
        ValueError: it is too short, or has characters that no header carries.
    """
    if len(text("secret", secret, is_empty_allowed=True)) < MIN_SECRET_CHARS:
        raise ValueError(f"a secret has at least {MIN_SECRET_CHARS} characters")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ValueError("a secret is of printable ASCII characters without spaces")
    return secret


def allowed_hosts(bound: str, port: int, more: Iterable[str]) -> frozenset[str]:
    """What may stand in ``Host``.

    Args:
        bound: The address that is listened on.
        port: The port.
        more: Names under which a proxy or a network knows it, with a port where it is not ours.
    """
    name = f"[{bound}]" if ":" in bound else bound
    names = [name.lower(), *LOOPBACK, *(host.lower() for host in more)]
    hosts = {f"{name}:{port}" for name in names if not _has_port(name)}
    hosts |= set(map(str.lower, more))
    if port in DEFAULT_PORTS:
        hosts |= set(names)
    return frozenset(hosts)


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@attrs.frozen
class Access:
    """The rules of one server; it is made of its two secrets.

    Attributes:
        hosts: What may stand in ``Host``.
    """

    _viewer: bytes = attrs.field(converter=_digest)
    _actor: bytes | None = attrs.field(converter=attrs.converters.optional(_digest))
    hosts: frozenset[str]

    def authorize(self, scope: Mapping[str, Any]) -> AccessRole | AccessDenied:
        """The role of a request, or why it is refused."""
        headers = _headers(scope)
        refused = (
            _check_form(scope, headers) or self._check_host(headers) or self._check_origin(headers)
        )
        if refused is not None:
            return refused
        if scope["path"] in OPEN_PATHS and scope["method"] != "POST":
            return AccessRole.PUBLIC
        return self._role(headers)

    def _check_host(self, headers: Mapping[str, list[str]]) -> AccessDenied | None:
        hosts = headers.get("host", [])
        if len(hosts) == 1 and hosts[0].lower() in self.hosts:
            return None
        return AccessDenied(
            421, "wrong_host", "this server is not known by that name: see the hosts= of serve()"
        )

    def _check_origin(self, headers: Mapping[str, list[str]]) -> AccessDenied | None:
        foreign = AccessDenied(403, "foreign_origin", "another site's page may not ask this")
        for origin in headers.get("origin", []):
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or host.lower() not in self.hosts:
                return foreign
        sites = headers.get("sec-fetch-site", [])
        if any(site not in ("same-origin", "none") for site in sites):
            # A link on another site may lead to the page itself, which shows nothing by itself.
            is_navigation = headers.get("sec-fetch-mode") == ["navigate"]
            return None if is_navigation else foreign
        return None

    def _role(self, headers: Mapping[str, list[str]]) -> AccessRole | AccessDenied:
        given = headers.get("authorization", [])
        kind, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if kind.lower() == "bearer":
            digest = _digest(secret.strip(" \t"))
            # Both are always compared: how long it takes says nothing.
            is_actor = hmac.compare_digest(digest, self._actor or bytes(len(digest)))
            is_viewer = hmac.compare_digest(digest, self._viewer)
            if is_actor and self._actor is not None:
                return AccessRole.ACTOR
            if is_viewer:
                return AccessRole.VIEWER
        return AccessDenied(
            401, "secret_needed", "send the secret that was printed: 'Authorization: Bearer SECRET'"
        )


def _headers(scope: Mapping[str, Any]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _check_form(scope: Mapping[str, Any], headers: Mapping[str, list[str]]) -> AccessDenied | None:
    if scope["http_version"] not in ("1.0", "1.1"):
        return AccessDenied(505, "wrong_version", "this server speaks HTTP/1.1 only")
    if scope["method"] not in METHODS:
        return AccessDenied(405, "wrong_method", "there is GET, HEAD, and POST for actions")
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return AccessDenied(414, "too_long", f"a URL here has at most {MAX_TARGET_BYTES} bytes")
    lengths = headers.get("content-length", ["0"])
    if "transfer-encoding" in headers or any(length.strip() != "0" for length in lengths):
        return AccessDenied(413, "body_not_taken", "requests here have no body")
    return None
