"""What the commands have in common: their arguments and options, and how they answer."""

from __future__ import annotations

import os
import re
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, Protocol, TypeVar

import click
import trio
from click.shell_completion import CompletionItem

from .._journal.history import list_all_runs
from .._journal.store import Store
from .._util.arguments import MAX_PORT
from .._util.text import stream_name
from ._app import app
from ._exits import EXIT_REFUSED, EXIT_USAGE, CommandError
from ._render import CommandAnswer, print_blocks, to_json
from ._select import MAC_KEY_PLACE, read_status, reading

MAC_KEY_VAR = "TRIO_CKPT_MAC_KEY_FILE"
DEFAULT_LIMIT = 20

_HOME = re.compile(r"([a-z]+:)?~")

F = TypeVar("F", bound=Callable[..., object])
Query = TypeVar("Query", bound=Callable[..., Awaitable[CommandAnswer]])


class TypedPath(click.Path):
    """A path on the command line, or in a variable; a shell expands ``~`` at its very begin only.

    ``--key=~/x`` and ``sqlite:~/x`` come as they are typed, and would make a folder of that name.
    """

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """See `click.Path`; what begins with ``~`` fails."""
        if isinstance(value, str) and _HOME.match(value):
            self.fail(f"{value!r} begins with '~', which the shell left: write $HOME", param, ctx)
        return super().convert(value, param, ctx)


class TypedName(click.ParamType[str]):
    """The name of a run, or how it begins; bytes that are not UTF-8 come as surrogates."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.ParamType`; what is no text fails, since no run has such a name."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not UTF-8, as the names of all runs are", param, ctx)
        return value


# ---------------------------------------------------------------------------------------
# Completion
# ---------------------------------------------------------------------------------------


def _complete_run(ctx: click.Context, _param: click.Parameter, start: str) -> list[CompletionItem]:
    """The names of the runs in the store that was typed."""
    return _complete(ctx, start, _run_names)


def _complete_stream(
    ctx: click.Context, _param: click.Parameter, start: str
) -> list[CompletionItem]:
    """The names of the streams of the run that was typed."""
    return _complete(ctx, start, partial(_stream_names, run_id=_typed(ctx, "run_id", 1)))


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
    return [run.run_id for run in await list_all_runs(store)]


async def _stream_names(store: Store, *, run_id: str | None) -> list[str]:
    return [stream_name(key) for key in (await read_status(store, run_id)).keys]


# ---------------------------------------------------------------------------------------
# Arguments and options
# ---------------------------------------------------------------------------------------


class Option(Protocol):
    """What click makes of an argument or an option: a decorator."""

    def __call__(self, command: F, /) -> F: ...


def with_options(command: F, *options: Option) -> F:
    """Add arguments and options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def count_option(
    flag: str, text: str, *, default: int | None = None, least: int = 1, most: int | None = None
) -> Option:
    """An option for a whole number, which is required if it has no default."""
    given: dict[str, Any] = {"required": True}
    if default is not None:
        given = {"default": default, "show_default": True}
    return click.option(flag, type=click.IntRange(least, most), metavar="N", help=text, **given)


def seconds_option(
    flag: str,
    text: str,
    *,
    default: float | None = None,
    least: float = 0,
    is_zero_allowed: bool = True,
) -> Option:
    """An option for a time span, in seconds; the name of its argument ends in ``_s``."""
    return click.option(
        flag,
        f"{flag[2:].replace('-', '_')}_s",
        type=click.FloatRange(min=least, min_open=not is_zero_allowed),
        default=default,
        show_default=default is not None,
        metavar="SECONDS",
        help=text,
    )


def _remember(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    ctx.meta[MAC_KEY_PLACE] = path


# A key is in a file, never typed, because every user can read a command line.
mac_key_option = click.option(
    "--mac-key-file",
    type=TypedPath(),
    metavar="FILE",
    envvar=MAC_KEY_VAR,
    expose_value=False,
    callback=_remember,
    help=f"The key that the store is sealed with; or set {MAC_KEY_VAR}.",
)
prefix_argument = click.argument(
    "prefix", type=TypedName(), metavar="[PREFIX]", default="", shell_complete=_complete_run
)
any_run_argument = click.argument(
    "run_id", type=TypedName(), metavar="[RUN]", required=False, shell_complete=_complete_run
)
run_argument = click.argument(
    "run_id", type=TypedName(), metavar="RUN", shell_complete=_complete_run
)
file_argument = click.argument("file", type=TypedPath())
json_option = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
all_option = click.option("--all", "show_all", is_flag=True, help="Leave nothing out.")
yes_option = click.option("--yes", is_flag=True, help="Do it without asking.")
stream_option = click.option(
    "--stream",
    metavar="NAME",
    shell_complete=_complete_stream,
    help='Only this stream or group, named as messages name it: "org/repo1/pulls", "org/repo1". '
    'Where two have one name: the JSON array of its parts, \'["org/repo1", "pulls"]\'.',
)
output_dir_option = click.option(
    "--output-dir", type=TypedPath(), metavar="FOLDER", help="Where the outputs are now."
)
limit_option = count_option("--limit", "How many, the newest first.", default=DEFAULT_LIMIT)


def store_argument(command: F) -> F:
    """Add the store and its key to a command."""
    return with_options(command, click.argument("store", type=TypedPath()), mac_key_option)


def listening_options(port: int) -> Option:
    """The options of a server: where it listens, and what protects its secret there."""

    def add(command: F) -> F:
        return with_options(
            command,
            click.option(
                "--host", default="127.0.0.1", show_default=True, help="The address to listen on."
            ),
            count_option(
                "--port", "The port; 0: one that is free.", default=port, least=0, most=MAX_PORT
            ),
            click.option(
                "--tls-cert",
                type=TypedPath(exists=True),
                metavar="FILE",
                help="A certificate chain for TLS, PEM.",
            ),
            click.option(
                "--tls-key",
                type=TypedPath(exists=True),
                metavar="FILE",
                help="Its key, if not in that file.",
            ),
            click.option(
                "--allow-plain",
                is_flag=True,
                help="Listen beyond this machine without TLS all the same.",
            ),
        )

    return add


def tls_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """The TLS of a server, from the two options; None: it has none.

    Raises:
        CommandError: the files hold no certificate and its key.
    """
    if cert is None:
        if key is not None:
            raise CommandError("--tls-key needs --tls-cert", EXIT_USAGE)
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise CommandError(f"{cert}: {error.reason}", EXIT_USAGE) from error
    return context


# ---------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------


def store_command(name: str, *options: Option) -> Callable[[Query], Query]:
    """Make a command of an async function of an open store, which stays what it is.

    The function is called with the store, and with the options by name; its docstring is the help.

    Args:
        name: How it is typed.
        options: Besides the store and ``--json``.
    """

    def add(query: Query) -> Query:
        @wraps(query)
        def command(store: str, as_json: bool, **typed: object) -> int:
            async def main() -> CommandAnswer:
                async with reading(store) as opened:
                    return await query(opened, **typed)

            return print_answer(main, as_json=as_json)

        app.command(name)(with_options(command, store_argument, *options, json_option))
        return query

    return add


def print_answer(query: Callable[[], Awaitable[CommandAnswer]], *, as_json: bool) -> int:
    """Run a query and print its answer; returns the exit code.

    Raises:
        CommandError: standard output does not take it.
    """
    answer = trio.run(query)
    content = to_json(answer.document()) if as_json else answer.blocks()
    try:
        if isinstance(content, str):
            print(content)
        else:
            print_blocks(content)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise CommandError(f"the answer could not be written: {why}", EXIT_REFUSED) from error
    return answer.exit_code
