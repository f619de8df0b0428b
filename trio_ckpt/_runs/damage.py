"""Comparing the outputs of confirmed batches with their files: of a resume, or of a check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs
import trio

from .._journal.history import LiveRecord
from .._util.errors import OutputInvalidError
from .._util.threads import run_blocking
from ..outputs import OutputDir, Validator, check_outputs, find_lines_damage

PARALLEL = 4  # threads that check files: hashing and disk reads release the GIL
MISSING_MANY = 10  # with more than these, and more than a tenth, the folder may be the wrong one
MISSING_SHARE = 0.1
MISSING = "missing"


@attrs.frozen
class Damage:
    """A confirmed batch with an output that differs from its record."""

    entry: LiveRecord
    path: str
    reason: str


async def find_damages(
    outputs: OutputDir,
    entries: Sequence[LiveRecord],
    mode: Literal["size", "sha256"],
    validator: Validator | None = None,
) -> list[Damage]:
    """Compare the outputs of records with their files, several at once.

    Cancellation: files that the threads have begun are finished.
    """
    if mode == "size" and validator is None:  # a call of the system each: threads would contend
        entries = await run_blocking(_find_changed, outputs, entries)
    found: list[Damage] = []
    errors: list[Exception] = []

    async def check_part(part: int) -> None:
        try:
            found.extend(
                await run_blocking(_find_damages, outputs, entries[part::PARALLEL], mode, validator)
            )
        except Exception as error:  # raised below, alone
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for part in range(min(PARALLEL, len(entries))):
            nursery.start_soon(check_part, part)
    if errors:
        raise errors[0]
    return sorted(found, key=lambda damage: -damage.entry.sequence)


def find_lines_damages(
    outputs: OutputDir,
    entries: Sequence[LiveRecord],
    ends: dict[str, int],
    *,
    by_digest: bool = True,
) -> list[Damage]:
    """Compare the lines that batches appended with their files.  Blocks.

    Args:
        outputs: The folder of the files.
        entries: The batches, newest first, none left out.
        ends: For each file, the offset in bytes where the lines of the first batch end; it is
            moved in place.
        by_digest: Whether to compare their content, too, not only their presence.
    """
    damages: list[Damage] = []
    for entry in entries:
        for lines in entry.record.lines:
            ends[lines.path] -= lines.size
            digest = lines.digest if by_digest else None
            reason = find_lines_damage(outputs, lines.path, ends[lines.path], lines.size, digest)
            if reason is not None:
                damages.append(Damage(entry, lines.path, reason))
    return damages


def _find_changed(outputs: OutputDir, entries: Sequence[LiveRecord]) -> list[LiveRecord]:
    """Return the records with an output that has another size or time now.  Blocks."""
    with outputs.unchanged() as is_unchanged:
        return [entry for entry in entries if not all(map(is_unchanged, entry.record.outputs))]


def _find_damages(
    outputs: OutputDir,
    entries: Sequence[LiveRecord],
    mode: Literal["size", "sha256"],
    validator: Validator | None,
) -> list[Damage]:
    damages: list[Damage] = []
    for entry in entries:
        listed = entry.record.outputs
        for output in listed:
            reason = outputs.check(output, mode)
            if reason is not None:
                damages.append(Damage(entry, output.path, reason))
                break
        else:
            if validator is not None:
                try:
                    check_outputs(outputs, listed, validator)
                except OutputInvalidError as error:
                    reason = (
                        f"invalid: {error.field}: {error.reason}" if error.field else error.reason
                    )
                    damages.append(Damage(entry, error.path, reason))
    return damages
