"""`verify --full` and `--repair`: check all of a store, and repair what can be repaired."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import attrs

from .._journal.store import Finding, Repaired
from .._maintenance.repair import RepairReport, repair_all
from .._maintenance.verify_store import check_all
from .._util.errors import StoreDamagedError
from .._util.text import plural
from ._change import Confirmation
from ._exits import EXIT_NOT_FOUND, EXIT_OK, EXIT_PROBLEMS, CommandError
from ._key import mac_key
from ._look import no_such_run, reading
from ._overview import MAX_ROWS
from ._report import Block, CommandAnswer, capped


@attrs.frozen
class RepairOptions:
    """The request to repair a store, and how far.

    Attributes:
        may_cut: Whether what was confirmed after a lost checkpoint may be given up.
        consent: How the user confirms the change.
    """

    may_cut: bool
    consent: Confirmation


async def verify_all(
    url: str,
    run_id: str | None,
    *,
    output_dir: str | None,
    every: bool,
    options: RepairOptions | None,
) -> CommandAnswer:
    """Check all of a store, and repair it if asked."""
    found = await _find(url, run_id, output_dir)
    damages = [finding for finding in found if finding.is_damage]
    report: RepairReport | None = None
    if options is not None and damages:
        what = plural(len(damages), "damage")
        options.consent.ask(
            f"repair what can be repaired of {what} in {url}, keep a copy of all that it "
            "replaces, and "
            + (
                "give up what was confirmed after a lost checkpoint"
                if options.may_cut
                else "lose nothing that is sound"
            )
        )
        report = await repair_all(
            url, found, run_id, output_dir=output_dir, may_cut=options.may_cut, mac_key=mac_key()
        )
    left = damages if report is None else report.left
    document: dict[str, Any] = {
        "store": url,
        "run": run_id,
        "findings": [_finding(finding) for finding in found],
        "repaired": None if report is None else list(map(attrs.asdict, report.done)),
        "not_repaired": None if report is None else list(map(attrs.asdict, report.not_done)),
        "left": None if report is None else [_finding(finding) for finding in report.left],
    }
    limit = None if every else MAX_ROWS
    blocks = _found_blocks(url, found, limit)
    if report is not None:
        blocks += _report_blocks(report, limit)
    return CommandAnswer(lambda: document, lambda: blocks, EXIT_PROBLEMS if left else EXIT_OK)


async def _find(url: str, run_id: str | None, output_dir: str | None) -> list[Finding]:
    """All findings; a store that is too damaged to be opened is a finding, too."""
    try:
        async with reading(url) as store:
            checked = check_all(store, run_id, output_dir=output_dir)
            async with aclosing(checked) as findings:
                found = [finding async for finding in findings]
            is_known = any(finding.run_id == run_id for finding in found if finding.is_damage)
            if run_id is not None and not is_known and await store.read_run(run_id) is None:
                raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
            return found
    except StoreDamagedError as error:
        return [Finding(url, str(error), "--repair mends what can be read")]


def _finding(finding: Finding) -> dict[str, Any]:
    return attrs.asdict(finding)


def _found_blocks(url: str, found: Sequence[Finding], limit: int | None) -> list[Block]:
    damages = [finding for finding in found if finding.is_damage]
    notes = [finding for finding in found if not finding.is_damage]
    text = f"{url} was checked, every byte of it: all is as it was saved"
    if damages:
        text = f"{url} was checked, every byte of it: {plural(len(damages), 'damage')} found"
    blocks: list[Block] = [text]
    if damages:
        columns = ("where", "what", "what can be done")
        blocks.append(capped(columns, damages, _row, limit, "damages"))
    if notes:
        blocks.append("no damage, but worth knowing:")
        blocks.append(capped(("where", "what", "what happens"), notes, _row, limit, "more"))
    return blocks


def _row(finding: Finding) -> tuple[str, ...]:
    return (finding.where, finding.what, finding.advice)


def _report_blocks(report: RepairReport, limit: int | None) -> list[Block]:
    blocks: list[Block] = ["nothing could be repaired"]
    if report.done:
        blocks = ["repaired:", capped(("where", "what"), report.done, _done, limit, "repairs")]
    if report.not_done:
        table = capped(("where", "why"), report.not_done, _done, limit, "others")
        blocks += ["not repaired:", table]
    if not report.left:
        return [*blocks, "the store is sound now; start the program to go on"]
    columns = ("where", "what", "what can be done")
    left = plural(len(report.left), "damage")
    return [*blocks, f"{left} left:", capped(columns, report.left, _row, limit, "damages")]


def _done(part: Repaired) -> tuple[str, ...]:
    return (part.where, f"{part.what} (a loss)" if part.is_loss else part.what)
