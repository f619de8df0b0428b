"""Which code works on a run: what a session records of it, and whether it has changed.

The digest of a function and of what it uses: `trio_ckpt._runs.code_digest`.  Which code confirmed
which batch is in the records of the stream: `trio_ckpt._journal.code`.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import attrs

from .._commit.open_stream import OpenStream
from .._journal.code import CodeMark, OldCode, change_code
from .._journal.progress import Progress
from .._util.arguments import checked_by, function, one_of, several, shown, text
from .._util.errors import CodeChangedError
from .._util.log import get_logger
from .._util.plain import Plain
from .._util.text import plural, printable, truncate
from .._util.threads import run_blocking
from .code_digest import digest_of
from .code_source import Sources

log = get_logger(__name__)

OnCodeChange = Literal["note", "refuse"]
AnyFunction = Callable[..., object]

MAX_NAME_CHARS = 200
MAX_LAYERS = 20  # of partials and decorators; more are a circle
GIT_TIMEOUT_S = 5.0  # a repository on a slow disk; without an answer the commit is unknown

_OF_ANOTHER = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"}
"""Set in a hook of git: they name its repository, and not that of the program."""


def _as_functions(functions: Iterable[AnyFunction]) -> tuple[AnyFunction, ...]:
    given = several("functions", functions, "functions")
    return tuple(function("a function", one) for one in given)


def _as_packages(packages: Iterable[str]) -> tuple[str, ...]:
    given = several("packages", packages, "names of packages")
    return tuple(text("a package", one) for one in given)


@attrs.frozen
class Code:
    """What a run notes of the code that works on it; see ``open_run(code=…)``.

    Attributes:
        on_change: What to do when the code of a stream with confirmed batches has changed: note
            it, or refuse to go on with `CodeChangedError`.
        functions: Functions that count for every stream beside the handler of `run_batches`, such
            as those that the body of an ``async for`` loop calls.
        packages: Installed packages whose versions the session records.
    """

    on_change: OnCodeChange = attrs.field(  # pyright: ignore[reportAssignmentType]
        default="note", validator=checked_by(one_of, choices=get_args(OnCodeChange))
    )
    functions: tuple[AnyFunction, ...] = attrs.field(default=(), converter=_as_functions)
    packages: tuple[str, ...] = attrs.field(default=(), converter=_as_packages)


def checked_code(code: object) -> Code:
    """Check the argument ``code``.

    Raises:
        TypeError, ValueError: it is neither a `Code` nor one of its words.
    """
    if isinstance(code, Code):
        return code
    if not isinstance(code, str):
        raise TypeError(f'code must be "note", "refuse" or a Code, not {shown(code)}')
    return Code(one_of("code", code, get_args(OnCodeChange)))


@attrs.define(eq=False, repr=False)
class CodeWatch:
    """Notes the code of the streams of one session.

    Attributes:
        code: What to note.
        session: The number of the session.
    """

    code: Code
    session: int
    _sources: Sources = attrs.field(factory=Sources, init=False)

    def note(self, open_stream: OpenStream, handler: AnyFunction | None) -> None:
        """Note which code works on a stream from now on.

        Args:
            open_stream: The stream.
            handler: The handler of its batches; None: they are worked on by a loop.

        Raises:
            CodeChangedError: it is not the code that confirmed batches, and that is refused.
        """
        if handler is None and open_stream.code is not None:
            return  # it was noted by the loop or the block before
        functions = [*(() if handler is None else (handler,)), *self.code.functions]
        if not functions:
            return
        digest = digest_of(functions, self._sources)
        mark = CodeMark(_name_of(functions[0]), digest, self.session)
        if older := _older(open_stream.stream_log.progress, mark):
            message = f"{open_stream.where()}: {_changed(mark, older)}"
            if self.code.on_change == "refuse":
                raise open_stream.error(CodeChangedError, message)
            log.warning("%s", message, extra=open_stream.place())
        open_stream.set_code(mark)


def _older(progress: Progress, now: CodeMark) -> OldCode:
    """The batches of older code, if the newest code of a stream is replaced; else empty."""
    before = progress.code
    if before is None or before.digest == now.digest:
        return ()
    old = change_code(progress.confirmed, before, progress.old_code, now)
    return tuple(one for one in old if one.mark.digest)


def _changed(now: CodeMark, older: OldCode) -> str:
    done, newest = sum(len(one.indexes) for one in older), older[-1].mark
    return (
        f"the code of {now.name} changed since session {newest.session}: "
        f"{plural(done, 'confirmed batch')} {'is' if done == 1 else 'are'} of older code, the "
        f"newest of it {newest.digest}; `trio-ckpt retry --code {newest.digest}` re-queues what "
        "that has done"
    )


def _name_of(value: object) -> str:
    """The name of a function, of what it wraps or calls, or of the class of an object."""
    for _ in range(MAX_LAYERS):
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, types.FunctionType) and "__wrapped__" in vars(value):
            value = vars(value)["__wrapped__"]
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return truncate(printable(str(name).rpartition("<locals>.")[2]), MAX_NAME_CHARS)


# -- what a session records -----------------------------------------------------------------------


async def read_code_facts(code: Code) -> dict[str, Plain]:
    """The commit, whether the tree was dirty, and the versions of packages.

    Cancellation: a cancellation point.
    """
    facts: dict[str, Plain] = await run_blocking(_commit, _folder(code))
    versions = {name: _version(name) for name in code.packages}
    return {**facts, "packages": versions} if versions else facts


def _folder(code: Code) -> str | None:
    """The folder of the program: that of its first function, or of its main module."""
    files = [getattr(getattr(one, "__code__", None), "co_filename", None) for one in code.functions]
    files.append(getattr(sys.modules.get("__main__"), "__file__", None))
    known = [os.path.dirname(os.path.abspath(file)) for file in files if file]
    return next((folder for folder in known if os.path.isdir(folder)), None)


def _commit(folder: str | None) -> dict[str, Plain]:
    """The commit of a folder, and whether files differ from it; empty: it is in no repository."""
    if folder is None or not _is_in_repository(folder):
        return {}
    command = ["git", "-C", folder, "-c", "core.fsmonitor=false", "status", "--porcelain=v2"]
    env = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER}
    try:
        done = subprocess.run(  # noqa: S603  # a list of words, none of which comes from outside
            [*command, "--branch", "--untracked-files=no"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            env={**env, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no repository after all
        return {}
    lines = done.stdout.decode(errors="replace").splitlines()
    heads = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    is_dirty = any(line and not line.startswith("#") for line in lines)
    return {"commit": heads[0], "is_dirty": is_dirty} if heads else {}


def _is_in_repository(folder: str) -> bool:
    while not os.path.exists(os.path.join(folder, ".git")):
        folder, before = os.path.dirname(folder), folder
        if folder == before:
            return False
    return True


def _version(package: str) -> str | None:
    import importlib.metadata  # only where a program names packages

    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
