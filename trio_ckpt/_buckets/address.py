"""The URL of a store or of outputs in a bucket: ``s3://BUCKET/PREFIX``, ``gs://``, ``az://`` or ``file://``.

Credentials are not in it: the library finds them where the tools of the provider do, in the
environment, in a profile or from the machine.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import attrs

from .._util.errors import StoreError
from .._util.lease_option import read_lease
from .._util.text import redacted_url

SCHEMES = frozenset({"s3", "gs", "az", "file"})
DEFAULT_LEASE_S = 60.0  # each renewal is a request that costs
STORE_FOLDERS = ("store", "names", "probe", "runs")  # what the keys of a store begin with
MAX_PREFIX_CHARS = 400  # of the 1,024 that a key may have

_OPTIONS = {
    "s3": ("lease_s", "endpoint", "region"),
    "gs": ("lease_s",),
    "az": ("lease_s", "endpoint", "account"),
    "file": ("lease_s",),
}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*", re.ASCII)
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


@attrs.frozen
class ObjectsAddress:
    """Where a store is, and how it is reached.

    Attributes:
        url: The URL as it was given.
        scheme: The kind of the object store.
        bucket: The bucket or container; for ``file`` the folder.
        prefix: What the keys of all its objects begin with, without a slash at the end.
        lease_s: How long an owner keeps a run without a sign of life, in seconds; infinite where
            nothing has a lease.
        endpoint: The URL of the server; None: the provider's.
        region: The region of the bucket; None: as the environment says.
        account: The account of the container; None: as the environment says.
    """

    url: str
    scheme: str
    bucket: str
    prefix: str = ""
    lease_s: float = DEFAULT_LEASE_S
    endpoint: str | None = None
    region: str | None = None
    account: str | None = None

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return redacted_url(self.url)


def parse_address(url: str, *, has_lease: bool = True) -> ObjectsAddress:
    """Read the URL of a store or of outputs in a bucket.

    Args:
        url: The URL.
        has_lease: Whether it may have ``lease_s``, as those of stores.

    Raises:
        StoreError: it names no bucket, or has an option that is unknown, given twice or bad.
    """
    shown = redacted_url(url)
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if "@" in place:
        raise StoreError(
            "the URL of the bucket is not shown: it has an @ before its query; credentials do not "
            "belong in it, they come from the environment or a profile"
        )
    options = _read_options(scheme, query, shown, has_lease=has_lease)
    lease_s = read_lease(options, DEFAULT_LEASE_S, shown) if has_lease else math.inf
    if scheme == "file":
        return _in_folder(url, place, lease_s, shown)
    bucket, _, prefix = place.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(
            f"{shown!r}: {bucket!r} is not the name of a bucket; write {scheme}://BUCKET/PREFIX, "
            "with small letters, digits, dots and dashes in the name of the bucket"
        )
    _check_prefix(prefix, shown)
    return ObjectsAddress(
        url,
        scheme,
        bucket,
        prefix,
        lease_s,
        _match(options, "endpoint", _ENDPOINT, "a URL such as https://minio.example:9000", shown),
        _match(options, "region", _WORD, "a name such as eu-central-1", shown),
        _match(options, "account", _WORD, "the name of a storage account", shown),
    )


def _in_folder(url: str, place: str, lease_s: float, shown: str) -> ObjectsAddress:
    folder = unquote(place)
    if not folder.startswith("/") or not folder.strip("/"):
        raise StoreError(
            f"{shown!r} names no folder; write file:///FOLDER with three slashes, or "
            "'sqlite:FOLDER' for a store that survives power loss"
        )
    return ObjectsAddress(url, "file", str(Path(folder)), lease_s=lease_s)


def _read_options(scheme: str, query: str, shown: str, *, has_lease: bool) -> dict[str, str]:
    found = dict[str, str]()
    known = [name for name in _OPTIONS[scheme] if has_lease or name != "lease_s"]
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        name = unquote(name)
        if name in found:
            raise StoreError(f"{shown!r}: {name!r} is given twice")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            has = ", ".join(known) or "none"
            raise StoreError(
                f"{shown!r}: there is no option {name!r}; {meant}{scheme}:// has {has}"
            )
        found[name] = unquote(value)
    return found


def _check_prefix(prefix: str, shown: str) -> None:
    parts = prefix.split("/")
    if prefix and (
        not _PREFIX.fullmatch(prefix)
        or len(prefix) > MAX_PREFIX_CHARS
        or any(part in (".", "..") for part in parts)
    ):
        raise StoreError(
            f"{shown!r}: {prefix!r} is not a prefix: letters, digits and _ . = - between single "
            f"slashes, at most {MAX_PREFIX_CHARS} characters"
        )


def _match(
    options: Mapping[str, str], name: str, pattern: re.Pattern[str], right: str, shown: str
) -> str | None:
    value = options.get(name)
    if value is not None and not pattern.fullmatch(value):
        what = name if "@" in value or "?" in value else f"{name}={value!r}"  # else a secret
        raise StoreError(f"{shown.partition('?')[0]!r}: {what} is not {right}")
    return value
