"""What a run was configured with: one canonical form, a digest, a diff by field."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from pathlib import PurePath
from typing import Any, cast

import attrs

from ._errors import NotEncodableError
from ._values import MAX_DEPTH, canonical_json, check_plain

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
    fields = _fields(config)
    if fields is None:
        raise NotEncodableError("config", "it is neither an attrs instance nor a mapping")
    kept = {name: value for name, value in fields.items() if name not in exclude}
    plain: dict[str, Any] = _plain(kept, "config")
    check_plain(plain, "config")
    if len(canonical_json(plain)) > MAX_CONFIG_BYTES:
        raise NotEncodableError("config", f"over {MAX_CONFIG_BYTES} bytes")
    return plain


def _fields(value: object) -> Mapping[str, Any] | None:
    """What an attrs instance or a mapping holds by name; None if it is neither."""
    kind = type(value)
    if attrs.has(kind):
        return {field.name: getattr(value, field.name) for field in attrs.fields(kind)}
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else None


def _plain(value: Any, path: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise NotEncodableError(path, f"nested deeper than {MAX_DEPTH}")
    below = depth + 1
    fields = _fields(value)
    if fields is not None:
        return {name: _plain(item, f"{path}.{name}", below) for name, item in fields.items()}
    if isinstance(value, enum.Enum):
        return _plain(value.value, path, below)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        items = [_plain(item, path, below) for item in cast("frozenset[Any]", value)]
        check_plain(items, path)  # or the JSON that they are sorted by could not be made
        return sorted(items, key=canonical_json)
    if isinstance(value, list | tuple):
        sequence = cast("Sequence[Any]", value)
        return [_plain(item, f"{path}[{at}]", below) for at, item in enumerate(sequence)]
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
            deeper = cast("tuple[Mapping[str, Any], Mapping[str, Any]]", (before, after))
            changes += diff_config(*deeper, f"{field}.")
        elif _show(before) != _show(after):
            changes.append((field, _show(before), _show(after)))
    return tuple(sorted(changes))


_ABSENT = object()


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else canonical_json(value)
