"""`verify`: compares the confirmed outputs with the files.  It needs more imports than `ls`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import click

from .._journal.store import Store
from .._maintenance.drift import Drift, DriftProblem, find_drift
from .._maintenance.verify_states import StateCheck, StateProblem, check_states
from .._runs.verify import MISSING, MISSING_MANY
from .._util.plain import StreamKey
from .._util.text import plural, quoted_name, stream_names
from .._util.threads import run_blocking
from ..outputs import OutputDir
from ._change import Confirmation
from ._exits import (
    EXIT_NOT_FOUND,
    EXIT_OK,
    EXIT_PROBLEMS,
    EXIT_USAGE,
    CommandError,
)
from ._look import RunStatus, choose_streams, look_at
from ._options import (
    all_option,
    answer,
    json_option,
    output_dir_option,
    run_argument,
    say,
    store_argument,
    stream_option,
    yes_option,
)
from ._overview import MAX_ROWS
from ._report import Block, CommandAnswer, capped
from ._verify_full import RepairOptions, verify_all


@click.command("verify")
@store_argument
@run_argument(required=False)
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
    run: str | None,
    stream: str | None,
    sha256: bool,
    full: bool,
    repair: bool,
    cut: bool,
    output_dir: str | None,
    every: bool,
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
        options = RepairOptions(may_cut=cut, consent=Confirmation(yes)) if repair else None
        check = partial(verify_all, store, run, output_dir=output_dir, every=every, options=options)
        return say(check, as_json=as_json)
    if cut or yes:
        raise CommandError("--accept-loss and --yes go with --repair", EXIT_USAGE)
    ask = partial(
        verify,
        run_id=run,
        stream=stream,
        mode="sha256" if sha256 else "size",
        output_dir=output_dir,
        every=every,
    )
    return answer(store, ask, as_json=as_json)


async def verify(
    store: Store,
    run_id: str | None,
    *,
    stream: str | None,
    mode: Literal["size", "sha256"],
    output_dir: str | None,
    every: bool,
) -> CommandAnswer:
    """Check every confirmed output, and change nothing."""
    look = await look_at(store, run_id)
    keys = choose_streams(look.keys, stream)
    folder: str | None = output_dir or look.facts.get("output_dir")
    drift, states = Drift(0, 0, ()), None
    if folder is None:
        if any(look.parts[key].outputs or look.parts[key].sinks for key in keys):
            raise CommandError(
                "the run does not say where its outputs are: give --output-dir", EXIT_USAGE
            )
    else:
        drift = await _find_drift(look, folder, keys, mode)
    if mode == "sha256":
        states = await check_states(look.store, look.view, keys)
    document = {
        "store": store.url,
        "run": look.run_id,
        "output_dir": folder,
        "mode": mode,
        "checked_files": drift.files,
        "checked_bytes": drift.bytes,
        "problems": [
            {
                "stream": list(problem.stream),
                "batch_index": problem.batch_index,
                "path": problem.path,
                "reason": problem.reason,
            }
            for problem in drift.problems
        ],
        "checked_states": None if states is None else states.states,
        "checked_state_bytes": None if states is None else states.bytes,
        "state_problems": [
            {
                "stream": list(problem.stream),
                "checkpoint": problem.checkpoint,
                "batch_index": problem.batch_index,
                "reason": problem.reason,
            }
            for problem in (states.problems if states is not None else ())
        ],
    }
    sinks = {key: look.parts[key].sinks for key in keys}
    names = stream_names(look.keys)
    blocks = [
        *_file_blocks(drift, mode, sinks, names, every=every),
        *_state_blocks(states, names, every=every),
    ]
    is_good = not drift.problems and (states is None or not states.problems)
    return CommandAnswer(lambda: document, lambda: blocks, EXIT_OK if is_good else EXIT_PROBLEMS)


_Sinks = Mapping[StreamKey, Mapping[str, int]]
_Names = Mapping[StreamKey, str]


def _how(drift: Drift, mode: Literal["size", "sha256"], sinks: _Sinks) -> str:
    """How closely files were verified."""
    if mode == "sha256":
        return "sha256"
    appended = sum(len(paths) for paths in sinks.values())
    ways = ["size and time, hash where the time differs"] if drift.files > appended else []
    ways += ["append files by length only (--sha256 reads them)"] if appended else []
    return "; ".join(ways)


def _file_blocks(
    drift: Drift,
    mode: Literal["size", "sha256"],
    sinks: _Sinks,
    names: _Names,
    *,
    every: bool,
) -> list[Block]:
    how = _how(drift, mode, sinks)
    checked = f"{plural(drift.files, 'file')} ({plural(drift.bytes, 'byte')})"
    if not drift.files and not drift.problems:
        return ["no batch has confirmed a file: nothing to check"]
    if not drift.problems:
        return [f"{checked} checked by {how}: all are as confirmed"]
    problems = plural(len(drift.problems), "problem")
    refusals = list(_refusals(drift, sinks, names))
    then = "" if refusals else ", a start re-queues their batches"
    row, limit = partial(_problem_row, names), None if every else MAX_ROWS
    return [
        f"{checked} checked by {how}: {problems}; nothing was changed{then}",
        *refusals,
        capped(_PROBLEM_COLUMNS, drift.problems, row, limit, "problems"),
    ]


def _refusals(drift: Drift, sinks: _Sinks, names: _Names) -> Iterator[str]:
    """Streams whose losses make a start refuse the folder; see `trio_ckpt._runs.verify`."""
    then = "is this the right output folder? redo_missing=True does their batches again"
    gone = [problem for problem in drift.problems if problem.reason == MISSING]
    for key, paths in sinks.items():
        name = quoted_name(names[key])
        for path in paths:
            if any(problem.stream == key and problem.path == path for problem in gone):
                yield (
                    f"stream {name}: all of the append file {path} is missing, so a start "
                    f"refuses (OutputsMissingError); {then}"
                )
        files = sum(problem.stream == key and problem.path not in paths for problem in gone)
        if files > MISSING_MANY:
            yield (
                f"stream {name}: outputs of {plural(files, 'batch')} are missing; if that is "
                f"more than a tenth of them a start refuses (OutputsMissingError); {then}"
            )


def _state_blocks(states: StateCheck | None, names: _Names, *, every: bool) -> list[Block]:
    if states is None or not (states.states or states.problems):
        return []
    checked = f"{plural(states.states, 'saved state')} ({plural(states.bytes, 'byte')} of arrays)"
    if not states.problems:
        return [f"{checked} checked: all are as saved"]
    problems = plural(len(states.problems), "problem")
    limit = None if every else MAX_ROWS
    return [
        f"{checked} checked: {problems}; restore the store from a copy, or rewind the stream to "
        "before the damaged one",
        capped(_STATE_COLUMNS, states.problems, partial(_state_row, names), limit, "problems"),
    ]


_PROBLEM_COLUMNS = ("stream", ">batch", "file", "problem")


def _problem_row(names: _Names, problem: DriftProblem) -> tuple[str, ...]:
    batch = "" if problem.batch_index is None else f"{problem.batch_index:,}"
    return (names[problem.stream], batch, problem.path, problem.reason)


_STATE_COLUMNS = ("stream", ">checkpoint", ">batch", "problem")


def _state_row(names: _Names, problem: StateProblem) -> tuple[str, ...]:
    checkpoint = "" if problem.checkpoint is None else f"{problem.checkpoint:,}"
    batch = "" if problem.batch_index is None else f"{problem.batch_index:,}"
    return (names[problem.stream], checkpoint, batch, problem.reason)


async def _find_drift(
    look: RunStatus, folder: str, keys: list[StreamKey], mode: Literal["size", "sha256"]
) -> Drift:
    if not await run_blocking(os.path.isdir, folder):  # opening it would make it
        raise CommandError(
            f"the output folder {folder} is not there; if it was moved, give --output-dir",
            EXIT_NOT_FOUND,
        )
    outputs = await run_blocking(OutputDir.open, folder)
    try:
        return await find_drift(look.store, look.view, outputs, mode=mode, keys=keys)
    finally:
        outputs.close()
