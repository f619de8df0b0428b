"""What a run is asked for, checked: its settings, and its configuration in canonical form."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import shlex
import signal
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal, cast, get_args

import attrs

from .._commit.limits import Limits
from .._commit.observers import Observers
from .._journal.store import RunView, Store
from .._tokens.coordinator import CheckpointCoordinator
from .._util.arguments import checked_by, flag, instance, one_of
from .._util.errors import NotEncodableError
from .._util.plain import MAX_DEPTH, Plain, as_plain, canonical_json
from ..state._retention import Retention
from .lag import Lag
from .verify import Verify

if TYPE_CHECKING:
    from .code import Code, CodeWatch

MAX_CONFIG_BYTES = 2**20  # each session saves it; a table of data is not a config

OnConfigChange = Literal["refuse", "restart", "accept"]


DEFAULT_WAIT_S = 60.0  # for deferred work: a start of a process costs about as much


@attrs.frozen
class Settings:
    """How a run resumes; see the arguments of `open_run` and `Run.open_stream`."""

    verify: Verify = attrs.field(validator=checked_by(one_of, choices=get_args(Verify)))
    redo_missing: bool = attrs.field(validator=checked_by(flag))
    retry_failed: bool = attrs.field(validator=checked_by(flag))
    retention: Retention = attrs.field(
        factory=Retention, validator=checked_by(instance, kind=Retention, what="a Retention")
    )
    recover: bool = attrs.field(default=False, validator=checked_by(flag))
    wait_for_deferred_s: float = DEFAULT_WAIT_S
    code: CodeWatch | None = None
    outputs_since: float = 0.0  # older files were not written by the run; Unix time, s
    base: RunView | None = None  # the generation that this one begins from
    is_settled: bool = False  # this one was complete before, so outputs of the other are archived
    lag: Lag | None = None


@attrs.frozen(kw_only=True)
class RunRequest:
    """The arguments of `open_run`, checked.

    Attributes:
        config: The canonical configuration, without the excluded fields.
        settings: `verify`, `redo_missing`, `retry_failed` and `wait_for_deferred_s`.
        is_fresh: `fresh`.
        is_again: `again`.
        observers: `observe`.
        The others have the names of `open_run`.
    """

    run_id: str
    store: Store | str
    config: dict[str, Plain]
    exclude: tuple[str, ...]
    tunable: tuple[str, ...]
    on_config_change: OnConfigChange
    output_dir: str | os.PathLike[str] | None
    settings: Settings
    is_fresh: bool
    is_again: bool
    handle_signals: bool | None
    stop_signals: tuple[signal.Signals, ...]
    limits: Limits | None
    grace_s: float
    save_timeout_s: float
    wait_for_lock_s: float
    resume_command: str | None
    coordinator: CheckpointCoordinator
    observers: Observers
    code: Code | None

    @property
    def command(self) -> str | None:
        """What the log shows for a resume: the given command, or that of this program."""
        return resume_command_of(self.resume_command)


def resume_command_of(given: str | None) -> str | None:
    """What the log shows for a resume: the given command, or that of this program."""
    return given or shlex.join(sys.orig_argv) or None


def canonical_config(config: object, exclude: Iterable[str] = ()) -> dict[str, Plain]:
    """A configuration as plain values: equal configurations give equal values.

    Args:
        config: An attrs instance, a dataclass or a JSON-like mapping.  A Path becomes its text,
            a datetime or date its ISO 8601 text, an enum its value, a set its sorted items.
        exclude: Fields that are ignored, nested ones dotted.

    Raises:
        NotEncodableError: a value has no canonical form; the error names its key.
        ValueError: the configuration has no such field to exclude.
    """
    if config is not None and fields_of(config) is None:
        raise NotEncodableError(
            "config", "it must be an attrs instance, a dataclass instance or a mapping"
        )
    left = set(exclude)
    bare = _plain({} if config is None else config, "config", frozenset(left), left)
    if left:
        raise ValueError(f"exclude names {sorted(left)[0]!r}, which is not a field of config")
    plain: dict[str, Plain] = as_plain(bare, "config")
    if len(canonical_json(plain)) > MAX_CONFIG_BYTES:
        raise NotEncodableError("config", f"over {MAX_CONFIG_BYTES} bytes")
    return plain


def fields_of(value: object) -> Mapping[str, object] | None:
    """The fields of an attrs instance, a dataclass or a mapping; None for anything else."""
    kind = type(value)
    if attrs.has(kind):
        return {field.name: getattr(value, field.name) for field in attrs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None


def _plain(
    value: object, path: str, excluded: frozenset[str], left: set[str], depth: int = 0
) -> object:
    """A value as plain values; excluded fields are left out, and removed from `left`."""
    if depth > MAX_DEPTH:
        raise NotEncodableError(path, f"nested deeper than {MAX_DEPTH}")
    below = depth + 1
    fields = fields_of(value)
    if fields is not None:
        plain: dict[str, object] = {}
        for name, item in fields.items():
            inside = f"{path}.{name}"
            field = inside.removeprefix("config.")
            if field in excluded:
                left.discard(field)
            else:
                plain[name] = _plain(item, inside, excluded, left, below)
        return plain
    if isinstance(value, enum.Enum):
        return _plain(value.value, path, excluded, left, below)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        members = cast("frozenset[object]", value)
        items = [_plain(item, path, excluded, left, below) for item in members]
        return sorted(as_plain(items, path), key=canonical_json)
    if isinstance(value, list | tuple):
        sequence = cast("Sequence[object]", value)
        return [
            _plain(item, f"{path}[{at}]", excluded, left, below) for at, item in enumerate(sequence)
        ]
    return value


def without_fields(plain: Mapping[str, Plain], fields: Iterable[str]) -> dict[str, Plain]:
    """A stored configuration without some of its fields, nested ones dotted."""
    kept = dict(plain)
    for field in fields:
        name, _, inside = field.partition(".")
        nested = _mapping_of(kept.get(name))
        if inside and nested is not None:
            kept[name] = without_fields(nested, [inside])
        elif not inside:
            kept.pop(name, None)
    return kept


def has_field(plain: Mapping[str, Plain], field: str) -> bool:
    """Whether a configuration has a field, a nested one dotted."""
    name, _, inside = field.partition(".")
    if not inside or name not in plain:
        return name in plain
    nested = _mapping_of(plain[name])
    return nested is not None and has_field(nested, inside)


def config_digest(plain: Mapping[str, Plain]) -> str:
    """The SHA-256 (hexadecimal) of a canonical configuration."""
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def refused_changes(
    changes: Iterable[tuple[str, str, str]], tunable: Collection[str]
) -> tuple[tuple[str, str, str], ...]:
    """The changes of fields that are not tunable, nor in one that is."""
    return tuple(change for change in changes if not _is_tunable(change[0], tunable))


def _is_tunable(field: str, tunable: Collection[str]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in tunable)


def diff_config(
    was: Mapping[str, Plain], now: Mapping[str, Plain], path: str = ""
) -> tuple[tuple[str, str, str], ...]:
    """The fields that differ as ``(field, was, now)``, nested ones dotted, sorted."""
    changes: list[tuple[str, str, str]] = []
    for name in sorted(was.keys() | now.keys()):
        field = f"{path}{name}"
        before, after = _mapping_of(was.get(name)), _mapping_of(now.get(name))
        if before is not None and after is not None:
            changes += diff_config(before, after, f"{field}.")
        elif _show(was, name) != _show(now, name):
            changes.append((field, _show(was, name), _show(now, name)))
    return tuple(sorted(changes))


def _mapping_of(value: Plain) -> Mapping[str, Plain] | None:
    return cast("Mapping[str, Plain]", value) if isinstance(value, Mapping) else None


def _show(plain: Mapping[str, Plain], name: str) -> str:
    return canonical_json(plain[name]) if name in plain else "absent"
