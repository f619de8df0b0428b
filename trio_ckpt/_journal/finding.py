"""What a check found: the one record for a problem of a store, a run, an output or a machine."""

from __future__ import annotations

import enum

import attrs

from .._util.plain import StreamKey, decode_key


class Severity(enum.Enum):
    """How bad a finding is."""

    GOOD = "good"
    NOTE = "note"  # worth knowing, nothing to do
    DOUBT = "doubt"  # it works, but may not hold what it promises
    BAD = "bad"  # something that was saved has changed, or something does not work


class FindingKind(enum.Enum):
    """What a finding is about."""

    STORE = "store"  # a file or a row of a store, or a record
    STATE = "state"  # a saved state, not the record that has it
    OUTPUT = "output"  # the output folder, or a file in it
    LOSS = "loss"  # the store has less than it has acknowledged
    CHECK = "check"  # a check of a machine, or of a run as a whole


@attrs.frozen
class Finding:
    """What a check found, most often a problem.

    Attributes:
        where: The file or the row, as a user can find it; or what was checked.
        what: What is wrong with it, as text.
        advice: What can be done; empty: nothing.
        severity: How bad it is.
        kind: What it is about.
        run_id: The run, if it is about one.
        generation: The generation of the run.
        stream: The key of the stream as text, if it is about one; see `key`.
        sequence: The sequence number of the checkpoint, if it is about one.
        batch_index: The batch, if it is about one; None for a whole append file.
        blob: The digest of the blob, if it is about one.
        path: The output file, relative to the output folder, if it is about one.
    """

    where: str
    what: str
    advice: str = ""
    severity: Severity = Severity.BAD
    kind: FindingKind = attrs.field(default=FindingKind.STORE, kw_only=True)
    run_id: str | None = attrs.field(default=None, kw_only=True)
    generation: int | None = attrs.field(default=None, kw_only=True)
    stream: str | None = attrs.field(default=None, kw_only=True)
    sequence: int | None = attrs.field(default=None, kw_only=True)
    batch_index: int | None = attrs.field(default=None, kw_only=True)
    blob: str | None = attrs.field(default=None, kw_only=True)
    path: str | None = attrs.field(default=None, kw_only=True)

    @property
    def is_damage(self) -> bool:
        """Whether something that was saved has changed; else it is only a notice."""
        return self.severity is Severity.BAD

    @property
    def key(self) -> StreamKey:
        """The key of its stream; empty if it is about none.

        Raises:
            StoreDamagedError: `stream` is no key.
        """
        return () if self.stream is None else decode_key(self.stream)
