"""The commands `export` and `import`: a run as one file."""

from __future__ import annotations

import shlex
from functools import partial

import attrs
import click

from .._journal.store import Store
from .._maintenance.export import ExportSummary, export_run
from .._maintenance.import_ import checked_archive, import_checked
from .._util.text import plural, redacted_url
from ..outputs import Outputs
from ._app import app
from ._change import answer, open_outputs
from ._options import (
    TypedPath,
    file_argument,
    json_option,
    output_dir_option,
    print_answer,
    run_argument,
    store_argument,
    store_command,
)
from ._render import CommandAnswer
from ._select import read_status, reading


@store_command(
    "export",
    run_argument,
    file_argument,
    click.option("--no-outputs", is_flag=True, help="Leave the output files out."),
    output_dir_option,
)
async def export(
    store: Store, run_id: str, *, file: str, no_outputs: bool, output_dir: str | None
) -> CommandAnswer:
    """Write a run and its outputs into FILE; it may be running."""
    run = await read_status(store, run_id)
    folder: str | None = output_dir or run.session_metadata.get("output_dir")
    outputs: Outputs | None = None
    if folder is not None and not no_outputs:
        advice = ": give --output-dir if it was moved, or --no-outputs"
        outputs = await open_outputs(folder, advice)
    try:
        done = await export_run(store, run.run_id, file, outputs=outputs)
    finally:
        if outputs is not None:
            outputs.close()
    text = f"run {run.run_id!r} is in {done.path}: {_amount(done)}, "
    return answer(store, text + plural(done.size_bytes, "byte"), **attrs.asdict(done))


def _amount(done: ExportSummary) -> str:
    counts = (done.streams, "stream"), (done.records, "record"), (done.outputs, "output file")
    return ", ".join(plural(count, noun) for count, noun in counts)


@app.command("import")
@store_argument
@file_argument
@click.option("--as", "run_id", metavar="RUN", help="Under another name.")
@click.option(
    "--output-dir", type=TypedPath(), metavar="FOLDER", help="Where the outputs are to go."
)
@json_option
def import_command(
    store: str, file: str, run_id: str | None, output_dir: str | None, as_json: bool
) -> int:
    """Import a run from FILE into a store, which is made if it is not there."""
    query = partial(_import, store, file, run_id=run_id, output_dir=output_dir)
    return print_answer(query, as_json=as_json)


async def _import(
    url: str, path: str, *, run_id: str | None, output_dir: str | None
) -> CommandAnswer:
    async with checked_archive(path, run_id=run_id) as checked, reading(url, create=True) as store:
        done = await import_checked(store, checked, output_dir=output_dir)
        left_out = len(checked.archive.outputs) - done.outputs
    texts = [f"run {done.run_id!r} is in {store.url}: {_amount(done)}"]
    if left_out:
        again = shlex.join(["trio-ckpt", "import", redacted_url(url), path])
        texts.append(
            f"{plural(left_out, 'output file')} of the run stayed in {done.path}; to have "
            f"{'it' if left_out == 1 else 'them'}: {again} --as NEW-NAME --output-dir FOLDER"
        )
    return answer(store, *texts, **attrs.asdict(done), outputs_left_out=left_out)
