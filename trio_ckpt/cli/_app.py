"""The command line: from what was typed to what the process exits with."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import click

from .._util.errors import EXIT_SIGINT
from .._util.exceptions import text_of
from .._util.screen import WRITTEN_OUT, Screen
from .._util.text import one_line
from ._exits import (
    EXIT_NO_READER,
    EXIT_OK,
    CommandError,
    error_document,
    exit_code_of,
)
from ._render import LogLines, to_json

PROGRAM = "trio-ckpt"
COMPLETE_VAR = "_TRIO_CKPT_COMPLETE"

COMMANDS: Mapping[str, tuple[str, str]] = {
    "ls": ("_show", "List the runs of a store."),
    "show": ("_show", "Show where a run stands."),
    "watch": ("_watch", "Watch a run until its process releases it, or a job until it is done."),
    "explain": ("_explain", "Say in words what a start would do, and why."),
    "history": ("_explain", "List the sessions of a run, or the checkpoints of a stream."),
    "changes": ("_changes", "Say what a run that was done again has changed."),
    "restore": ("_changes", "Copy the outputs of an older generation."),
    "verify": ("_verify", "Compare the confirmed outputs with the files."),
    "export": ("_export", "Write a run into one file."),
    "import": ("_export", "Take a run out of a file."),
    "retry": ("_change", "Re-queue what was given up or has failed."),
    "ctl": ("_ctl", "Steer a run, running or not; every act is on record."),
    "rewind": ("_change", "Re-queue all that came after a batch."),
    "compact": ("_change", "Merge saved states, and drop old arrays."),
    "reset": ("_change", "Archive a run: the next start begins it again."),
    "prune": ("_change", "Remove archived generations of a run."),
    "monitor": ("_monitor", "Show the runs of a store in a browser."),
    "new": ("_new", "Write a small project with a test."),
    "init": ("_init", "Make a store that has no runs yet."),
    "doctor": ("_doctor", "Check this machine, and a store."),
    "foreman": ("_remote", "Accept jobs, and assign their items to workers."),
    "worker": ("_remote", "Work for a foreman."),
}
"""Command -> the module that has it, and its line in the list of commands.

A command's module is imported, and adds it to `app`, when it is typed: some need most of the
library, and `ls` should answer at once.
"""


_loaded: dict[str, click.Command] = {}  # not where click looks for names to suggest: it has few


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        return _loaded.get(cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        _loaded[name or cmd.name or ""] = cmd

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:  # click would exit with 1, which means another thing
            raise CommandError("the reader of the output is gone", EXIT_NO_READER) from error
        return code

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    PROGRAM,
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.version_option(package_name="trio-ckpt", message="%(prog)s %(version)s")
def app() -> None:
    """Inspect the runs of a store, and change what they do next.

    STORE is a folder or a URL, as open_run takes it. RUN may be left out by commands that only
    read, where the store has one run. Reading needs no lock: it works while the run is running.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What was typed after its name; default: those of this process.

    Returns:
        What to exit with; docs/reference/command.md has the table.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    with _open_output(), redirect_stderr(Screen(sys.stderr)):
        return _run(typed)


@contextmanager
def _open_output() -> Generator[None]:
    """Make sure that there is a standard output, and that it accepts every name."""
    if sys.stdout is None:  # it was closed before this process began
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
        return
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a name that it cannot encode must not fail the command
        reconfigure(errors=WRITTEN_OUT)
    yield


def _run(typed: Sequence[str]) -> int:
    handler = LogLines(f"{PROGRAM}: ", logging.ERROR)  # the command reports the rest
    logging.root.addHandler(handler)
    try:
        code: Any = app.main(
            list(typed), prog_name=PROGRAM, complete_var=COMPLETE_VAR, standalone_mode=False
        )
        return code if isinstance(code, int) else EXIT_OK
    except (KeyboardInterrupt, click.Abort):
        return EXIT_SIGINT
    except Exception as error:
        return _give_up(error, as_json="--json" in typed)
    finally:
        logging.root.removeHandler(handler)


def _give_up(error: Exception, *, as_json: bool) -> int:
    """Print in one line what is wrong; an unexpected error keeps its traceback."""
    code = exit_code_of(error)
    if code is None:
        raise error
    if code == EXIT_NO_READER:
        _give_up_output()
        return code
    message = one_line(_message(error))
    try:
        if as_json:
            print(to_json(error_document(error, message, code)))
        sys.stdout.flush()
    except OSError:
        _give_up_output()
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code


def _give_up_output() -> None:
    """Discard what was not written, or Python complains when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else PROGRAM
        message = " ".join(error.format_message().split()).rstrip(".")  # it has lines of choices
        return f"{message}; see {path} --help"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror and not isinstance(error, CommandError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return text_of(error)
