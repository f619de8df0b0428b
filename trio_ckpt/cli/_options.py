"""What the commands have in common: their arguments and options, and how they answer."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import click
import trio
from click.shell_completion import CompletionItem

from .._journal.store import Store
from .._util.text import stream_name
from ._exits import EXIT_REFUSED, CommandError
from ._key import mac_key_option
from ._look import look_at, reading
from ._paths import TypedPath
from ._report import CommandAnswer, show, to_json

DEFAULT_LIMIT = 20

F = TypeVar("F", bound=Callable[..., Any])


def complete_run(ctx: click.Context, _param: click.Parameter, start: str) -> list[CompletionItem]:
    """The names of the runs in the store that was typed."""
    return _complete(ctx, start, _run_names)


def complete_stream(
    ctx: click.Context, _param: click.Parameter, start: str
) -> list[CompletionItem]:
    """The names of the streams of the run that was typed."""
    return _complete(ctx, start, partial(_stream_names, run_id=_typed(ctx, "run", 1)))


def _complete(
    ctx: click.Context, start: str, names: Callable[[Store], Awaitable[list[str]]]
) -> list[CompletionItem]:
    async def read() -> list[str]:
        async with reading(_typed(ctx, "store", 0) or "") as store:
            return await names(store)

    try:
        found = trio.run(read)
    except Exception:
        return []  # a completion must not print an error
    return [CompletionItem(name) for name in found if name.startswith(start)]


def _typed(ctx: click.Context, name: str, place: int) -> str | None:
    """An argument; click leaves them in a heap when an option has no value yet."""
    value: str | None = ctx.params.get(name)
    if value is None and place < len(ctx.args):
        value = ctx.args[place]
    return value


async def _run_names(store: Store) -> list[str]:
    return [run.run_id for run in await store.list_runs()]


async def _stream_names(store: Store, *, run_id: str | None) -> list[str]:
    return [stream_name(key) for key in (await look_at(store, run_id)).keys]


def store_argument(command: F) -> F:
    return click.argument("store", type=TypedPath())(mac_key_option(command))


def run_argument(*, required: bool) -> Callable[[F], F]:
    return click.argument("run", required=required, shell_complete=complete_run)


json_option = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
all_option = click.option("--all", "every", is_flag=True, help="Leave nothing out.")
yes_option = click.option("--yes", is_flag=True, help="Do it without asking.")
stream_option = click.option(
    "--stream",
    metavar="NAME",
    shell_complete=complete_stream,
    help='Only this stream or group, named as messages name it: "org/repo1/pulls", "org/repo1". '
    'Where two have one name: the JSON array of its parts, \'["org/repo1", "pulls"]\'.',
)
output_dir_option = click.option(
    "--output-dir", type=TypedPath(), metavar="FOLDER", help="Where the outputs are now."
)


def limit_option(command: F) -> F:
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=DEFAULT_LIMIT,
        show_default=True,
        metavar="N",
        help="How many, the newest first.",
    )(command)


def answer(
    url: str,
    ask: Callable[[Store], Awaitable[CommandAnswer]],
    *,
    as_json: bool,
) -> int:
    """Query an existing store and print the answer; returns the exit code."""

    async def main() -> CommandAnswer:
        async with reading(url) as store:
            return await ask(store)

    return say(main, as_json=as_json)


def say(main: Callable[[], Awaitable[CommandAnswer]], *, as_json: bool) -> int:
    """Print an answer; returns the exit code.

    Raises:
        CommandError: standard output does not take it.
    """
    answer = trio.run(main)
    content = to_json(answer.document()) if as_json else answer.blocks()
    try:
        if isinstance(content, str):
            print(content)
        else:
            show(content)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise CommandError(f"the answer could not be written: {why}", EXIT_REFUSED) from error
    return answer.exit_code
