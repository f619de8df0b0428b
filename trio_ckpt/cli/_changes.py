"""`changes` and `restore`: what a generation has changed, and the outputs of one before it."""

from __future__ import annotations

from contextlib import aclosing, closing

import click

from .._journal.changes import (
    BeganFrom,
    Change,
    ItemChange,
    again_of,
    counts_text,
    is_complete,
    iter_changes,
)
from .._journal.store import Store
from .._journal.summary import RunStatus
from .._maintenance.restore import restore_outputs
from .._util.text import number, plural, stream_names
from .._util.threads import run_blocking
from ..outputs import open_outputs as open_target
from ._change import open_outputs
from ._exits import EXIT_NOT_FOUND, EXIT_OK, EXIT_PROBLEMS, EXIT_USAGE, CommandError
from ._options import (
    TypedPath,
    all_option,
    any_run_argument,
    count_option,
    output_dir_option,
    run_argument,
    store_command,
)
from ._render import Block, CommandAnswer, Document, capped, row_limit
from ._select import read_status

MAX_DOCUMENTED = 100_000  # items in one document, which is made in memory


@store_command("changes", any_run_argument, all_option)
async def show_changes(store: Store, run_id: str | None, *, show_all: bool) -> CommandAnswer:
    """Say what is new, changed and gone in a run that was begun with again=True.

    Items that are unchanged are only counted.
    """
    run = await read_status(store, run_id)
    again = again_of(run.session_metadata, run.view.generation)
    if again is None:
        raise CommandError(
            f"run {run.run_id!r} was not done again: its generation {run.view.generation} began "
            "from no other one",
            EXIT_NOT_FOUND,
        )
    is_settled = is_complete(run.view)
    counts, items = await _read_changes(run, again, is_settled=is_settled)
    names = stream_names({item.stream for item in items})

    def document() -> Document:
        return {
            "store": store.url,
            "run": run.run_id,
            "generation": run.view.generation,
            "base": again.base,
            "complete": is_settled,
            "counts": counts,
            "items": [_item_document(item) for item in items],
            "more": sum(counts.values()) - counts["unchanged"] - len(items),
        }

    def row(item: ItemChange) -> tuple[str, ...]:
        index = item.previous if item.batch is None else item.batch
        outputs = ", ".join(output.path for output in item.outputs)
        return item.change.value, names[item.stream], number(index or 0), outputs

    def blocks() -> list[Block]:
        text = f"generation {run.view.generation} of run {run.run_id!r}, from generation "
        text += f"{again.base}: {counts_text(counts)}"
        if not is_settled:
            text += "; it is not complete, so what is gone is not known yet"
        columns = ("", "stream", ">batch", "outputs")
        shown = [capped(columns, items, row, row_limit(show_all=show_all), "items")]
        return [text, *(shown if items else [])]

    return CommandAnswer(document, blocks)


async def _read_changes(
    run: RunStatus, again: BeganFrom, *, is_settled: bool
) -> tuple[dict[str, int], list[ItemChange]]:
    base = await run.store.load_run(run.run_id, again.base)
    if base is None:
        raise CommandError(
            f"generation {again.base}, which generation {run.view.generation} of run "
            f"{run.run_id!r} began from, was pruned",
            EXIT_NOT_FOUND,
        )
    counts = dict.fromkeys((change.value for change in Change), 0)
    items: list[ItemChange] = []
    pages = iter_changes(run.store, run.view, base, is_complete=is_settled)
    async with aclosing(pages):
        async for page in pages:
            for item in page:
                counts[item.change.value] += 1
                if item.change is not Change.UNCHANGED and len(items) < MAX_DOCUMENTED:
                    items.append(item)
    return counts, items


def _item_document(item: ItemChange) -> Document:
    return {
        "stream": list(item.stream),
        "change": item.change.value,
        "batch_index": item.batch,
        "previous": item.previous,
        "outputs": [output.path for output in item.outputs],
    }


@store_command(
    "restore",
    run_argument,
    count_option("--generation", "Which one.", least=0),
    click.option("--to", type=TypedPath(), metavar="FOLDER", required=True, help="Where they go."),
    output_dir_option,
)
async def restore(
    store: Store, run_id: str, *, generation: int, to: str, output_dir: str | None
) -> CommandAnswer:
    """Copy the outputs of a generation into another folder, as they were then."""
    run = await read_status(store, run_id)
    view = await store.load_run(run_id, generation)
    folder: str | None = output_dir or run.session_metadata.get("output_dir")
    if view is None:
        raise CommandError(
            f"run {run_id!r} has no generation {generation}: the newest is {run.view.generation}, "
            "and older ones may have been pruned",
            EXIT_NOT_FOUND,
        )
    if folder is None:
        raise CommandError(
            "the run does not say where its outputs are: give --output-dir", EXIT_USAGE
        )
    advice = "; if it was moved, give --output-dir"
    with (
        closing(await open_outputs(folder, advice)) as outputs,
        closing(await run_blocking(open_target, to)) as target,
    ):
        if outputs.root == target.root:
            raise CommandError("--to is the output folder itself: name another one", EXIT_USAGE)
        found = await restore_outputs(store, view, run.view.generation, outputs, target)
    document: Document = {
        "store": store.url,
        "run": run_id,
        "generation": generation,
        "to": to,
        "files": found.files,
        "bytes": found.bytes,
        "problems": [{"path": path, "problem": problem} for path, problem in found.problems],
    }
    texts: list[Block] = [f"{path}: {problem}" for path, problem in found.problems]
    done = f"{plural(found.files, 'file')} of generation {generation} are in {to}"
    code = EXIT_PROBLEMS if found.problems else EXIT_OK
    return CommandAnswer(lambda: document, lambda: [*texts, done], code)
