"""What a run was configured with: one canonical form, a digest, a diff by field."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Mapping
from datetime import date, datetime
from pathlib import PurePath
from typing import Any

import attrs

from ._errors import NotEncodableError
from ._records import canonical_json, check_plain

MAX_CONFIG_BYTES = 2**20  # it is kept with every session; a table of data is not a config


def canonical_config(config: Any, exclude: Collection[str] = ()) -> dict[str, Any]:
    """A configuration as plain values, so that equal ones are equal whatever their form.

    Args:
        config: An attrs instance or a JSON-like mapping.  A Path is its text, a datetime
            or date its ISO 8601 text, an enum its value, a set its sorted items.
        exclude: Top-level fields that do not count.

    Raises:
        NotEncodableError: a value has no canonical form; with its key.
    """
    if config is None:
        return {}
    plain = _plain(config, "config")
    if not isinstance(plain, dict):
        raise NotEncodableError("config", "it is neither an attrs instance nor a mapping")
    for name in exclude:
        plain.pop(name, None)
    check_plain(plain, "config")
    if len(canonical_json(plain)) > MAX_CONFIG_BYTES:
        raise NotEncodableError("config", f"over {MAX_CONFIG_BYTES} bytes")
    return plain


def _plain(value: Any, path: str) -> Any:
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        return {f.name: _plain(getattr(value, f.name), f"{path}.{f.name}") for f in fields}
    if isinstance(value, enum.Enum):
        return _plain(value.value, path)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, path) for item in value), key=canonical_json)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{at}]") for at, item in enumerate(value)]
    return value


def config_digest(plain: Mapping[str, Any]) -> str:
    """The SHA-256 (hexadecimal) of a canonical configuration."""
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def diff_config(
    was: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> tuple[tuple[str, str, str], ...]:
    """The fields that differ as ``(field, was, now)``, nested ones dotted, sorted."""
    changes: list[tuple[str, str, str]] = []
    for name in sorted(was.keys() | now.keys()):
        field = f"{path}{name}"
        before, after = was.get(name, _ABSENT), now.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += diff_config(before, after, f"{field}.")
        elif (
            before is _ABSENT or after is _ABSENT or canonical_json(before) != canonical_json(after)
        ):
            changes.append((field, _show(before), _show(after)))
    return tuple(changes)


_ABSENT = object()


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else canonical_json(value)
