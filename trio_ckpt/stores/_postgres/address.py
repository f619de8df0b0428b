"""The URL of a PostgreSQL store: what libpq takes, and a few options of the store in its query.

Passwords need not be in it: libpq finds them in the file that PGPASSFILE names, and everything in
a service file.  https://www.postgresql.org/docs/current/libpq-connect.html
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from urllib.parse import unquote

import attrs
import psycopg
from psycopg import conninfo, pq

from ..._util.errors import StoreError
from ..._util.lease_option import read_lease
from ..._util.text import redacted_url

DEFAULT_SCHEMA = "trio_ckpt"
DEFAULT_LEASE_S = 30.0
OPTIONS = ("schema", "lease_s", "pooler")

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)  # PostgreSQL cuts longer names
_ALIASES = ("ssl",)  # what libpq takes in URLs for the sake of other drivers

# A connection whose other end is gone is noticed within seconds, not hours.
CONNECTION_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "fallback_application_name": "trio_ckpt",
}


@attrs.frozen
class PostgresAddress:
    """Where a store is, and how it is used.

    Attributes:
        url: The URL as it was given, maybe with a password.
        conninfo: What libpq is given, likewise.
        schema: The schema of its tables.
        lease_s: How long an owner keeps a run without a sign of life, in seconds.
        is_pooled: Whether a pooler between gives each transaction another connection.
    """

    url: str = attrs.field(repr=False)
    conninfo: str = attrs.field(repr=False)
    schema: str = DEFAULT_SCHEMA
    lease_s: float = DEFAULT_LEASE_S
    is_pooled: bool = False

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return redacted_url(self.url)


def parse_address(url: str) -> PostgresAddress:
    """Take the options of the store out of a URL, and check the rest.

    Raises:
        StoreError: an option is unknown, given twice or has a bad value, or libpq cannot read it.
    """
    head, own, others = _split(url)
    shown = redacted_url(url)
    rest = f"{head}?{'&'.join(others)}" if others else head
    parameters = _read(rest)
    if isinstance(parameters, str):
        raise StoreError(f"{shown!r} is not a URL that libpq can read: {parameters}")
    given = _given(parameters)
    unset = {key: value for key, value in CONNECTION_DEFAULTS.items() if key not in given}
    return PostgresAddress(
        url,
        conninfo.make_conninfo("", **{**parameters, **unset, "client_encoding": "utf8"}),
        _schema_of(own, shown),
        read_lease(own, DEFAULT_LEASE_S, shown),
        _is_pooled(own, shown),
    )


def _read(url: str) -> dict[str, str | int | None] | str:
    """Return what libpq reads in a URL, or why it cannot; its error repeats what may be secret."""
    try:
        return conninfo.conninfo_to_dict(url)
    except psycopg.Error as error:
        return str(error).strip().partition(': "')[0]


def _given(parameters: Mapping[str, object]) -> set[str]:
    """Return the parameters that the URL or the environment gives."""
    defaults = {info.keyword.decode() for info in pq.Conninfo.get_defaults() if _is_set(info)}
    return {*parameters, *defaults}


def _is_set(info: pq.ConninfoOption) -> bool:
    return info.val is not None and info.val != info.compiled


def _split(url: str) -> tuple[str, dict[str, str], list[str]]:
    """Split a URL into what is before its query, the store's options, and those of libpq."""
    shown = redacted_url(url)
    scheme, _, rest = url.partition("://")
    place, login = re.search(r"[@/]", rest), ""
    if place is not None and place[0] == "@":  # a password may have a question mark
        login, rest = rest[: place.end()], rest[place.end() :]
    rest, _, query = rest.partition("?")
    if "@" in rest or any("@" in part.partition("=")[0] for part in query.split("&")):
        # libpq ends a password at the first of both; no error may show what it takes the rest for.
        raise StoreError(
            "the URL of the store is not shown: it has an @ where none belongs; in a user's name "
            "or a password write %40 for @, %2F for / and %3F for ?"
        )
    own, others, seen = dict[str, str](), list[str](), set[str]()
    known = {info.keyword.decode() for info in pq.Conninfo.get_defaults()} | {*_ALIASES}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        name = unquote(name)
        if name in seen:
            raise StoreError(f"{shown!r}: {name!r} is given twice")
        seen.add(name)
        if name in OPTIONS:
            own[name] = unquote(value)
        elif name in known:
            others.append(part)
        else:
            raise StoreError(f"{shown!r}: {_no_such_option(name, known)}")
    return f"{scheme}://{login}{rest}", own, others


def _no_such_option(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, [*OPTIONS, *sorted(known)], 1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"there is no option {name!r}; {meant}The store has {', '.join(OPTIONS)}; libpq has others"
    )


def _schema_of(own: Mapping[str, str], shown: str) -> str:
    schema = own.get("schema", DEFAULT_SCHEMA)
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise StoreError(
            f"{shown!r}: schema={schema!r} is not the name of a schema: small letters, digits and "
            "_, at most 63, and none of PostgreSQL's own (pg_)"
        )
    return schema


def _is_pooled(own: Mapping[str, str], shown: str) -> bool:
    pooler = own.get("pooler")
    if pooler not in (None, "transaction"):
        raise StoreError(
            f"{shown!r}: pooler={pooler!r} is unknown; write pooler=transaction where a pooler "
            "gives each transaction another connection, and nothing where it gives each client one"
        )
    return pooler is not None
