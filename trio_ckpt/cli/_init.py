"""`init`: makes a store before its first run, by a role that may make tables."""

from __future__ import annotations

from contextlib import aclosing

import click

from .._util.extras import needs_extra
from ..stores import is_server, open_store
from ._app import app
from ._exits import EXIT_USAGE, CommandError
from ._options import json_option, print_answer, store_argument
from ._render import CommandAnswer
from ._select import mac_key


@app.command("init")
@store_argument
@click.option("--print", "is_printed", is_flag=True, help="Print the SQL, and run nothing.")
@json_option
def init_command(store: str, is_printed: bool, as_json: bool) -> int:
    """Make a store that has no runs yet; one that is there stays as it is.

    Only this needs the right to make a schema and tables: the processes that run need it not.
    """

    async def make() -> CommandAnswer:
        if is_printed:
            script = _script_of(store)
            return CommandAnswer(lambda: {"script": script}, script.splitlines)
        async with aclosing(await open_store(store, mac_key=mac_key())) as opened:
            shown, durability = opened.url, opened.durability
        return CommandAnswer(
            lambda: {"store": shown, "durability": durability},
            lambda: [f"store {shown} is there, durability {durability!r}"],
        )

    return print_answer(make, as_json=as_json)


def _script_of(url: str) -> str:
    if not is_server(url):
        raise CommandError("--print is for the store of a server: postgresql://…", EXIT_USAGE)
    with needs_extra("postgres", "a store in PostgreSQL"):
        from ..stores._postgres.schema import init_script

    return init_script(url)
