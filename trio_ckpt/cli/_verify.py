"""`verify`: compares what is there with what was saved, and repairs it if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Literal

import attrs
import click
from msgspec.structs import asdict

from .._journal.store import Finding, FindingKind, Repaired
from .._journal.summary import RunStatus
from .._maintenance.drift import Drift, find_drift
from .._maintenance.repair import RepairReport, repair_all
from .._maintenance.verify_states import StateCheck, check_states
from .._maintenance.verify_store import check_all
from .._runs.verify import MISSING, MISSING_MANY
from .._util.errors import StoreDamagedError
from .._util.plain import StreamKey
from .._util.text import number, plural, quoted_name, redacted_url, stream_names
from ..outputs import Outputs
from ._app import app
from ._change import confirm, open_outputs
from ._exits import EXIT_NOT_FOUND, EXIT_OK, EXIT_PROBLEMS, EXIT_USAGE, CommandError
from ._options import (
    all_option,
    any_run_argument,
    json_option,
    output_dir_option,
    print_answer,
    store_argument,
    stream_option,
    yes_option,
)
from ._render import Block, CommandAnswer, Document, capped, row_limit
from ._select import choose_streams, mac_key, no_such_run, read_status, reading

Mode = Literal["size", "sha256"]


@app.command("verify")
@store_argument
@any_run_argument
@stream_option
@click.option(
    "--sha256", is_flag=True, help="Read every file, and every saved state, and compare hashes."
)
@click.option(
    "--full",
    is_flag=True,
    help="Check all of the store, too: every record, every blob, its own files; of all runs, if "
    "none is named.",
)
@click.option("--repair", is_flag=True, help="Do --full, and then repair what can be repaired.")
@click.option(
    "--accept-loss",
    "cut",
    is_flag=True,
    help="With --repair: also give up what cannot be continued, and what is gone.",
)
@output_dir_option
@all_option
@yes_option
@json_option
def verify_command(
    store: str,
    run_id: str | None,
    stream: str | None,
    sha256: bool,
    full: bool,
    repair: bool,
    cut: bool,
    output_dir: str | None,
    show_all: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Compare the confirmed outputs with the files, and change nothing.

    With --sha256 the saved states are read, too; with --full all that the store holds. Only with
    --repair something is changed. Exits with 1 if something is missing or not as it was.
    """
    if full or repair:
        if stream is not None:
            raise CommandError("--full looks at whole runs: leave --stream out", EXIT_USAGE)
        options = RepairOptions(accept_loss=cut, yes=yes) if repair else None
        query = partial(
            verify_all, store, run_id, output_dir=output_dir, show_all=show_all, options=options
        )
        return print_answer(query, as_json=as_json)
    if cut or yes:
        raise CommandError("--accept-loss and --yes go with --repair", EXIT_USAGE)

    async def main() -> CommandAnswer:
        async with reading(store) as opened:
            run = await read_status(opened, run_id)
            keys = choose_streams(run.keys, stream)
            mode: Mode = "sha256" if sha256 else "size"
            return await verify(run, keys, mode, output_dir=output_dir, show_all=show_all)

    return print_answer(main, as_json=as_json)


# ---------------------------------------------------------------------------------------
# Outputs and states
# ---------------------------------------------------------------------------------------


async def verify(
    run: RunStatus,
    keys: Sequence[StreamKey],
    mode: Mode,
    *,
    output_dir: str | None,
    show_all: bool,
) -> CommandAnswer:
    """Check every confirmed output, and change nothing."""
    folder: str | None = output_dir or run.session_metadata.get("output_dir")
    drift, states, compared = Drift(0, 0, ()), StateCheck(0, 0, ()), Outputs.compared
    if folder is None:
        if any(run.parts[key].outputs or run.parts[key].sinks for key in keys):
            raise CommandError(
                "the run does not say where its outputs are: give --output-dir", EXIT_USAGE
            )
    else:
        advice = "; if it was moved, give --output-dir"
        with closing(await open_outputs(folder, advice)) as outputs:
            compared = outputs.compared
            drift = await find_drift(run.store, run.view, outputs, mode=mode, keys=keys)
    reads_states = mode == "sha256"
    if reads_states:
        states = await check_states(run.store, run.view, keys)
    document = {
        "store": run.store.url,
        "run": run.run_id,
        "output_dir": folder,
        "mode": mode,
        "checked_files": drift.files,
        "checked_bytes": drift.bytes,
        "problems": [_problem_document(one, path=one.path) for one in drift.problems],
        "checked_states": states.states if reads_states else None,
        "checked_state_bytes": states.bytes if reads_states else None,
        "state_problems": [_problem_document(p, checkpoint=p.sequence) for p in states.problems],
    }
    sinks = {key: run.parts[key].sinks for key in keys}
    names, limit = stream_names(run.keys), row_limit(show_all=show_all)
    blocks = [
        *_file_blocks(drift, _how(drift, mode, compared, sinks), sinks, names, limit),
        *_state_blocks(states, names, limit),
    ]
    code = EXIT_PROBLEMS if drift.problems or states.problems else EXIT_OK
    return CommandAnswer(lambda: document, lambda: blocks, code)


def _problem_document(problem: Finding, **more: object) -> Document:
    stream, index = list(problem.key), problem.batch_index
    return {"stream": stream, "batch_index": index, **more, "reason": problem.what}


_Sinks = Mapping[StreamKey, Mapping[str, int]]
_Names = Mapping[StreamKey, str]


def _how(drift: Drift, mode: Mode, compared: str, sinks: _Sinks) -> str:
    """How closely files were verified; `compared` is how that is done by default."""
    if mode == "sha256":
        return "sha256"
    appended = sum(len(paths) for paths in sinks.values())
    ways = [compared] if drift.files > appended else []
    ways += ["append files by length only (--sha256 reads them)"] if appended else []
    return "; ".join(ways)


def _file_blocks(
    drift: Drift, how: str, sinks: _Sinks, names: _Names, limit: int | None
) -> list[Block]:
    checked = f"{plural(drift.files, 'file')} ({plural(drift.bytes, 'byte')})"
    if not drift.files and not drift.problems:
        return ["no batch has confirmed a file: nothing to check"]
    if not drift.problems:
        return [f"{checked} checked by {how}: all are as confirmed"]
    problems = plural(len(drift.problems), "problem")
    refusals = list(_refusals(drift, sinks, names))
    then = "" if refusals else ", a start re-queues their batches"
    row = partial(_problem_row, names)
    return [
        f"{checked} checked by {how}: {problems}; nothing was changed{then}",
        *refusals,
        capped(_PROBLEM_COLUMNS, drift.problems, row, limit, "problems"),
    ]


def _refusals(drift: Drift, sinks: _Sinks, names: _Names) -> Iterator[str]:
    """Streams whose losses make a start refuse the folder; see `trio_ckpt._runs.verify`."""
    then = "is this the right output folder? redo_missing=True does their batches again"
    gone = [problem for problem in drift.problems if problem.what == MISSING]
    for key, paths in sinks.items():
        name = quoted_name(names[key])
        for path in paths:
            if any(problem.key == key and problem.path == path for problem in gone):
                yield (
                    f"stream {name}: all of the append file {path} is missing, so a start "
                    f"refuses (OutputsMissingError); {then}"
                )
        files = sum(problem.key == key and problem.path not in paths for problem in gone)
        if files > MISSING_MANY:
            yield (
                f"stream {name}: outputs of {plural(files, 'batch')} are missing; if that is "
                f"more than a tenth of them a start refuses (OutputsMissingError); {then}"
            )


def _state_blocks(states: StateCheck, names: _Names, limit: int | None) -> list[Block]:
    if not (states.states or states.problems):
        return []
    checked = f"{plural(states.states, 'saved state')} ({plural(states.bytes, 'byte')} of arrays)"
    if not states.problems:
        return [f"{checked} checked: all are as saved"]
    problems = plural(len(states.problems), "problem")
    return [
        f"{checked} checked: {problems}; restore the store from a copy, or rewind the stream to "
        "before the damaged one",
        capped(_STATE_COLUMNS, states.problems, partial(_state_row, names), limit, "problems"),
    ]


_PROBLEM_COLUMNS = ("stream", ">batch", "file", "problem")
_STATE_COLUMNS = ("stream", ">checkpoint", ">batch", "problem")


def _problem_row(names: _Names, problem: Finding) -> tuple[str, ...]:
    return names[problem.key], _cell(problem.batch_index), problem.path or "", problem.what


def _state_row(names: _Names, problem: Finding) -> tuple[str, ...]:
    checkpoint, batch = _cell(problem.sequence), _cell(problem.batch_index)
    return names[problem.key], checkpoint, batch, problem.what


def _cell(index: int | None) -> str:
    return "" if index is None else number(index)


# ---------------------------------------------------------------------------------------
# The whole store
# ---------------------------------------------------------------------------------------


@attrs.frozen
class RepairOptions:
    """The request to repair a store, and how far.

    Attributes:
        accept_loss: Whether what was confirmed after a lost checkpoint may be given up.
        yes: Whether the user has confirmed the change already.
    """

    accept_loss: bool
    yes: bool


async def verify_all(
    url: str,
    run_id: str | None,
    *,
    output_dir: str | None,
    show_all: bool,
    options: RepairOptions | None,
) -> CommandAnswer:
    """Check all of a store, and repair it if asked."""
    shown = redacted_url(url)
    found = await _find(url, run_id, output_dir)
    damages = [finding for finding in found if finding.is_damage]
    report: RepairReport | None = None
    if options is not None and damages:
        what = plural(len(damages), "damage")
        confirm(
            f"repair what can be repaired of {what} in {shown}, keep a copy of all that it "
            "replaces, and "
            + (
                "give up what was confirmed after a lost checkpoint"
                if options.accept_loss
                else "lose nothing that is sound"
            ),
            yes=options.yes,
        )
        report = await repair_all(
            url,
            found,
            run_id,
            output_dir=output_dir,
            accept_loss=options.accept_loss,
            mac_key=mac_key(),
        )
    left = damages if report is None else report.left
    document: Document = {
        "store": shown,
        "run": run_id,
        "findings": list(map(_finding_document, found)),
        "repaired": None if report is None else list(map(asdict, report.done)),
        "not_repaired": None if report is None else list(map(asdict, report.not_done)),
        "left": None if report is None else list(map(_finding_document, report.left)),
    }
    limit = row_limit(show_all=show_all)
    blocks = _found_blocks(shown, found, limit)
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
        return [Finding(redacted_url(url), str(error), "--repair mends what can be read")]


def _finding_document(finding: Finding) -> Document:
    document = attrs.asdict(finding, filter=attrs.filters.exclude("kind", "severity"))
    return {
        **document,
        "is_damage": finding.is_damage,
        "is_state": finding.kind is FindingKind.STATE,
        "is_loss": finding.kind is FindingKind.LOSS,
    }


def _found_blocks(shown: str, found: Sequence[Finding], limit: int | None) -> list[Block]:
    damages = [finding for finding in found if finding.is_damage]
    notes = [finding for finding in found if not finding.is_damage]
    text = f"{shown} was checked, every byte of it: all is as it was saved"
    if damages:
        text = f"{shown} was checked, every byte of it: {plural(len(damages), 'damage')} found"
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
