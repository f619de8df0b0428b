"""`monitor`: the runs of a store in a browser."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click
import trio

from .._util.nursery import open_service_nursery
from .._util.screen import Screen
from .._util.text import redacted_url
from ._app import app
from ._exits import EXIT_OK, EXIT_REFUSED, EXIT_USAGE, CommandError
from ._options import listening_options, seconds_option, store_argument, tls_context
from ._render import Pairs, to_json, to_lines
from ._select import reading

SECRET_VAR = "TRIO_CKPT_MONITOR_SECRET"  # noqa: S105  # the name of one
ACTION_SECRET_VAR = "TRIO_CKPT_ACTION_SECRET"  # noqa: S105  # likewise


@app.command("monitor")
@store_argument
@listening_options(8_000)
@click.option(
    "--allow-actions", is_flag=True, help="Take actions, with a second secret that is printed."
)
@click.option(
    "--known-as", "hosts", multiple=True, metavar="NAME", help="Another name it is reached by."
)
@seconds_option("--stuck-after", "From which age on a pending token is shown as stuck.")
@click.option("--json", "as_json", is_flag=True, help="Say where it is as one JSON document.")
def monitor_command(
    store: str, tls_cert: str | None, tls_key: str | None, as_json: bool, **options: Any
) -> int:
    """Show the runs of STORE in a browser, until Ctrl-C.

    A viewer needs the secret that is printed, or that of the environment variable
    TRIO_CKPT_MONITOR_SECRET (for actions: TRIO_CKPT_ACTION_SECRET).
    """
    options["ssl_context"] = tls_context(tls_cert, tls_key)
    options["secret"] = os.environ.get(SECRET_VAR) or None
    options["action_secret"] = os.environ.get(ACTION_SECRET_VAR) or None
    return trio.run(_show, store, options, as_json)


async def _show(url: str, options: dict[str, Any], as_json: bool) -> int:
    from .. import monitor

    async with reading(url) as store:

        async def begin(*, task_status: trio.TaskStatus[Any]) -> None:
            await monitor.serve(store, task_status=task_status, **options)

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with open_service_nursery() as nursery:
                try:
                    serving = await nursery.start(begin)
                except (OSError, ValueError) as error:
                    raise _cannot_serve(error, options) from error
                _say(url, serving, as_json=as_json)
                await anext(signals)
    return EXIT_OK


def _cannot_serve(problem: Exception, options: dict[str, Any]) -> CommandError:
    if isinstance(problem, ValueError):
        return CommandError(str(problem), EXIT_USAGE)
    return CommandError(
        f"cannot listen on {options['host']}:{options['port']}: {problem}", EXIT_REFUSED
    )


def _say(url: str, serving: Any, *, as_json: bool) -> None:
    screen = Screen(sys.stdout)  # the page is there, also where this cannot be read
    if as_json:
        document = {
            "store": redacted_url(url),
            "url": serving.url,
            "page_url": serving.page_url,
            "secret": serving.secret,
            "action_secret": serving.action_secret,
        }
        print(to_json(document), file=screen)
        return
    pairs = [("page", serving.page_url), ("secret", serving.secret)]
    if serving.action_secret is not None:
        pairs.append(("secret for actions", serving.action_secret))
    pairs.append(("stop", "Ctrl-C"))
    for line in to_lines([Pairs(pairs)]):
        print(line, file=screen)
