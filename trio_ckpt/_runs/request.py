"""What a run is asked for, checked: settings travel as frozen records."""

from __future__ import annotations

import os
from typing import Literal, get_args

import attrs

from .._commit.observers import Observers
from .._journal.store import Store
from .._tokens.coordinator import CheckpointCoordinator
from .._util.arguments import checked_by, flag, instance, one_of
from .._util.plain import Plain
from ..state._retention import Retention
from .verify import Verify

OnConfigChange = Literal["refuse", "restart", "accept"]


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
    outputs_since: float = 0.0  # older files were not written by the run; Unix time, s


@attrs.frozen(kw_only=True)
class RunRequest:
    """The arguments of `open_run`, checked.

    Attributes:
        config: The canonical configuration, without the excluded fields.
        settings: `verify`, `redo_missing` and `retry_failed`.
        is_fresh: `fresh`.
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
    handle_signals: bool | None
    grace_s: float
    save_timeout_s: float
    resume_command: str | None
    coordinator: CheckpointCoordinator
    observers: Observers
