"""The commands that run until they are stopped: a foreman, and a worker."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from .._util.exceptions import leaves_of
from .._util.extras import needs_extra
from .._util.screen import Screen
from ..remote import Foreman, UnsafeBindingError, new_secret, run_worker, serve_foreman
from ..remote._foreman.foreman import DEFAULT_GRACE_S
from ..remote._wire.link import SILENCE_S
from ..remote._worker.calls import PATIENCE_S
from ..stores import open_store
from ._app import app
from ._exits import EXIT_OK, EXIT_USAGE, CommandError
from ._options import (
    TypedPath,
    count_option,
    json_option,
    listening_options,
    seconds_option,
    store_argument,
    tls_context,
)
from ._render import Document, LogLines, to_json
from ._select import mac_key

SECRET_VARIABLE = "TRIO_CKPT_SECRET"  # noqa: S105  # its name, not its value
MAX_SECRET_FILE_BYTES = 4_096

secret_option = click.option(
    "--secret-file",
    type=TypedPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"The secret that peers need; default: the variable {SECRET_VARIABLE}. A foreman makes a "
    "missing file.",
)
quiet_option = click.option("--quiet", is_flag=True, help="Print errors only.")


@app.command("foreman")
@store_argument
@listening_options(9_000)
@secret_option
@click.option(
    "--name", "hosts", multiple=True, help="Another host name under which peers reach it."
)
@count_option("--max-connections", "More are closed at once.", default=1_000)
@seconds_option(
    "--grace",
    "How long a worker whose connection was closed may take to come back.",
    default=DEFAULT_GRACE_S,
)
@seconds_option(
    "--silence",
    "A peer that says nothing for so long is gone.",
    default=SILENCE_S,
    is_zero_allowed=False,
)
@click.option("--rebalance", is_flag=True, help="Move running items to idle workers.")
@quiet_option
@json_option
def foreman_command(
    store: str,
    secret_file: Path | None,
    tls_cert: str | None,
    tls_key: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Accept jobs, and assign their items to workers; all its data is in STORE.

    Kill it at any time and start it again: jobs go on.
    """
    need_remote()
    secret = read_secret(secret_file, may_make=True)
    context = tls_context(tls_cert, tls_key)
    raise_file_limit()

    async def main() -> None:
        async with aclosing(await open_store(store, mac_key=mac_key())) as opened:
            serve = partial(serve_foreman, opened, secret=secret, ssl_context=context, **options)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop_on_signal, nursery.cancel_scope)
                foreman: Foreman = await nursery.start(serve)
                document = {"url": foreman.url, "port": foreman.port}
                _print_start(document, f"listening on {foreman.url}", as_json=as_json)

    try:
        return run_until_stopped(main, quiet=quiet)
    except UnsafeBindingError as error:
        raise CommandError(
            f"{options['host']!r} is beyond this machine, and without TLS others on the network "
            "can read the secret: give --tls-cert and --tls-key, or --allow-plain where the "
            "network is your own",
            EXIT_USAGE,
        ) from error


@app.command("worker")
@click.argument("url")
@click.option(
    "--allow",
    multiple=True,
    required=True,
    metavar="MODULE",
    help="Run functions of this module, and of those below it; may be given again.",
)
@count_option("--slots", "How many items at a time.", default=1, most=128)
@click.option("--name", help="The name of the worker; default: its host and process.")
@secret_option
@click.option(
    "--ca-file",
    type=TypedPath(exists=True),
    metavar="FILE",
    help="PEM: the authorities to trust, for wss:.",
)
@seconds_option("--grace", "How long functions have to save when it is stopped.", default=30.0)
@seconds_option(
    "--patience",
    "How long functions go on without a connection, when they wait for a save.",
    default=PATIENCE_S,
    is_zero_allowed=False,
)
@quiet_option
@json_option
def worker_command(
    url: str,
    name: str | None,
    secret_file: Path | None,
    ca_file: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Work for the foreman at URL: ws://host:port, or wss:// for TLS.

    It runs functions of the modules that are named here, by their names, and nothing else. Modules
    are looked for in the current folder, too. SIGTERM: save, and hand back what is running.
    """
    need_remote()
    secret = read_secret(secret_file, may_make=False)
    context = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
    sys.path.insert(0, os.getcwd())
    work = partial(
        run_worker,
        url,
        secret=secret,
        name=name,
        ssl_context=context,
        handle_signals=True,
        **options,
    )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if await nursery.start(work):
                document = {"url": url, "name": name}
                _print_start(document, f"working for {url}", as_json=as_json)

    return run_until_stopped(main, quiet=quiet)


def _print_start(document: Document, text: str, *, as_json: bool) -> None:
    """Print that a service has started, on one line; a reader that is gone does not end it."""
    print(to_json(document, indent=None) if as_json else text, file=Screen(sys.stdout))


def need_remote() -> None:
    """Make sure that the extra is installed, before a secret is made or read.

    Raises:
        MissingExtraError: it is not.
    """
    with needs_extra("remote", "a foreman or a worker"):
        importlib.import_module("trio_websocket")


def read_secret(path: Path | None, *, may_make: bool) -> str:
    """The secret, from a file or the environment; never from the command line, which all can read.

    Args:
        path: Of the file; None: the environment has it.
        may_make: Whether to make a file that is not there.

    Raises:
        CommandError: there is none, or others may read the file.
    """
    if path is None:
        found = os.environ.get(SECRET_VARIABLE, "")
        if not found:
            raise CommandError(f"give --secret-file, or set {SECRET_VARIABLE}", EXIT_USAGE)
        return found
    if may_make and not path.exists():
        _make_secret(path)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise CommandError(
                f"{path} may be read by others: chmod 600 {path}, or take another secret",
                EXIT_USAGE,
            )
        return file.read(MAX_SECRET_FILE_BYTES).decode("utf-8", "replace").strip()


def _make_secret(path: Path) -> None:
    """Make the file of a secret, whole or not at all; a file that is there stays as it is.

    A process that is killed here leaves no file that is empty, which every later start would
    refuse.
    """
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(new_secret() + "\n")
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):  # another foreman was first
            os.link(draft, path)
    finally:
        os.unlink(draft)


def raise_file_limit() -> None:
    """Raise the limit of open files to its maximum: a connection is one, a lease two."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def stop_on_signal(scope: trio.CancelScope) -> None:
    """End in good order on SIGINT and SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _number in signals:
            scope.cancel()
            return


def run_until_stopped(main: Callable[[], Awaitable[None]], *, quiet: bool) -> int:
    """Run a service until it is stopped; a single failure leaves as it is."""
    with _telling(quiet=quiet):
        try:
            trio.run(main)
        except BaseExceptionGroup as group:
            leaves = leaves_of(group)
            if len(leaves) == 1:
                raise leaves[0] from None
            raise
    return EXIT_OK


@contextmanager
def _telling(*, quiet: bool) -> Generator[None]:
    """Print events on standard error; the command itself prints errors."""
    logger = logging.getLogger("trio_ckpt.remote")
    handler = LogLines("", logging.INFO)
    handler.addFilter(lambda record: record.levelno < logging.ERROR)
    before = logger.level
    if not quiet:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
