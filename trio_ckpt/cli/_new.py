"""`new`: writes a small project with a test."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
from importlib.resources import files
from pathlib import Path

import click

from ._app import app
from ._exits import EXIT_REFUSED, EXIT_USAGE, CommandError
from ._options import json_option, print_answer
from ._render import CommandAnswer

KINDS = ("collector", "pipeline", "training", "crawler")
PLACEHOLDER = "project_name"  # in names of files and in their text: the name of the project
TEMPLATE = "-tpl"  # at the end of files that tools would take for a part of this package

# A name of a module and of a distribution: the latter ends with a letter or a digit.
_NAME = re.compile(r"[a-z]([a-z0-9_]{0,48}[a-z0-9])?")


@app.command("new")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@json_option
def new_command(kind: str, name: str, as_json: bool) -> int:
    """Write a small project into a new folder: a program, its test, how to run both.

    KIND: collector (an API, page by page), pipeline (documents through two stages), training (a
    model, bit for bit), crawler (pages that lead to others). NAME is that of the folder and of
    the module in it.
    """

    async def write() -> CommandAnswer:
        _check_name(name)
        written = _write_project(kind, Path(name))
        return CommandAnswer(
            lambda: {
                "project": name,
                "kind": kind,
                "folder": str(Path(name).absolute()),
                "files": written,
            },
            lambda: [
                f"{name}/ has a {kind}: {', '.join(written)}",
                f"go on with: cd {name} && python {name}.py",
            ],
        )

    return print_answer(write, as_json=as_json)


def _check_name(name: str) -> None:
    """See that a module may have this name.

    Raises:
        CommandError: it may not, or the folder exists.
    """
    if _NAME.fullmatch(name) is None or keyword.iskeyword(name):
        raise CommandError(
            f"{name!r} is not the name of a package: write small letters, digits and _, a letter "
            "first, as in 'my_crawl'",
            EXIT_USAGE,
        )
    if os.path.lexists(name):
        raise CommandError(f"{name!r} exists: choose another name", EXIT_REFUSED)
    if importlib.util.find_spec(name) is not None:
        raise CommandError(
            f"{name!r} is the name of a module that is installed, which the project would hide: "
            "choose another name",
            EXIT_USAGE,
        )


def _write_project(kind: str, folder: Path) -> list[str]:
    """Write the files of a project into a folder that does not exist; returns their names."""
    templates = files("trio_ckpt.cli").joinpath("_projects", kind)
    folder.mkdir()
    names: list[str] = []
    for template in sorted(templates.iterdir(), key=lambda entry: entry.name):
        text = template.read_text(encoding="utf-8").replace(PLACEHOLDER, folder.name)
        names.append(template.name.removesuffix(TEMPLATE).replace(PLACEHOLDER, folder.name))
        (folder / names[-1]).write_text(text, encoding="utf-8")
    return names
