"""The commands that write, as they are typed."""

from __future__ import annotations

from functools import partial

import click

from ..state._retention import Retention
from . import _change
from ._options import (
    answer,
    json_option,
    output_dir_option,
    run_argument,
    say,
    store_argument,
    stream_option,
    yes_option,
)
from ._paths import TypedPath


@click.command("export")
@store_argument
@run_argument(required=True)
@click.argument("file", type=TypedPath())
@click.option("--no-outputs", is_flag=True, help="Leave the output files out.")
@output_dir_option
@json_option
def export_command(
    store: str, run: str, file: str, no_outputs: bool, output_dir: str | None, as_json: bool
) -> int:
    """Write a run and its outputs into FILE; it may be running."""
    ask = partial(
        _change.export,
        run_id=run,
        path=file,
        with_outputs=not no_outputs,
        output_dir=output_dir,
    )
    return answer(store, ask, as_json=as_json)


@click.command("import")
@store_argument
@click.argument("file", type=TypedPath())
@click.option("--as", "run", metavar="RUN", help="Under another name.")
@click.option(
    "--output-dir", type=TypedPath(), metavar="FOLDER", help="Where the outputs are to go."
)
@json_option
def import_command(
    store: str, file: str, run: str | None, output_dir: str | None, as_json: bool
) -> int:
    """Import a run from FILE into a store, which is made if it is not there."""
    ask = partial(_change.import_, store, file, run_id=run, output_dir=output_dir)
    return say(ask, as_json=as_json)


@click.command("retry")
@store_argument
@run_argument(required=True)
@stream_option
@click.option("--batches", metavar="17,203-210", help="These batches, also confirmed ones.")
@output_dir_option
@yes_option
@json_option
def retry_command(
    store: str,
    run: str,
    stream: str | None,
    batches: str | None,
    output_dir: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Re-queue what was given up and what has failed for good."""
    change = _change.retry if batches is None else partial(_change.redo, batches=batches)
    consent = _change.Confirmation(yes)
    ask = partial(change, run_id=run, stream=stream, output_dir=output_dir, consent=consent)
    return answer(store, ask, as_json=as_json)


@click.command("rewind")
@store_argument
@run_argument(required=True)
@stream_option
@click.option(
    "--to", type=int, required=True, metavar="K", help="The last batch that stays confirmed."
)
@output_dir_option
@yes_option
@json_option
def rewind_command(
    store: str,
    run: str,
    stream: str | None,
    to: int,
    output_dir: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Go back to when batch K of a stream was the last one; state and cursor, too."""
    ask = partial(
        _change.rewind,
        run_id=run,
        stream=stream,
        to=to,
        output_dir=output_dir,
        consent=_change.Confirmation(yes),
    )
    return answer(store, ask, as_json=as_json)


@click.command("compact")
@store_argument
@run_argument(required=True)
@stream_option
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=Retention().last,
    show_default=True,
    metavar="N",
    help="How many states keep their large arrays, the newest counted; pinned ones do, too.",
)
@click.option(
    "--archive",
    type=TypedPath(),
    metavar="STORE",
    help="Move the others there instead of deleting them.",
)
@yes_option
@json_option
def compact_command(
    store: str,
    run: str,
    stream: str | None,
    keep: int,
    archive: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Merge saved states, so that a start reads one, and drop old arrays."""
    ask = partial(
        _change.compact,
        run_id=run,
        stream=stream,
        keep=keep,
        archive=archive,
        consent=_change.Confirmation(yes),
    )
    return answer(store, ask, as_json=as_json)


@click.command("reset")
@store_argument
@run_argument(required=True)
@stream_option
@output_dir_option
@yes_option
@json_option
def reset_command(
    store: str, run: str, stream: str | None, output_dir: str | None, yes: bool, as_json: bool
) -> int:
    """Archive a run, so that the next start begins it again. Nothing is deleted."""
    consent = _change.Confirmation(yes)
    ask = partial(_change.reset, run_id=run, output_dir=output_dir, consent=consent)
    if stream is not None:
        ask = partial(
            _change.reset_streams,
            run_id=run,
            stream=stream,
            output_dir=output_dir,
            consent=consent,
        )
    return answer(store, ask, as_json=as_json)


@click.command("prune")
@store_argument
@run_argument(required=True)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    required=True,
    metavar="N",
    help="How many generations are left, the newest counted; 0 removes the run.",
)
@yes_option
@json_option
def prune_command(store: str, run: str, keep: int, yes: bool, as_json: bool) -> int:
    """Remove archived generations of a run from the store."""
    ask = partial(_change.prune, run_id=run, keep=keep, consent=_change.Confirmation(yes))
    return answer(store, ask, as_json=as_json)
