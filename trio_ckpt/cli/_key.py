"""The key of a store: in a file, never typed, because every user can read a command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..stores import read_mac_key
from ._paths import TypedPath

MAC_KEY_VAR = "TRIO_CKPT_MAC_KEY_FILE"
_PLACE = "trio_ckpt.mac_key_file"  # in the meta data of click's context

F = TypeVar("F", bound=Callable[..., Any])


def _remember(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    ctx.meta[_PLACE] = path


def mac_key_option(command: F) -> F:
    """Add the option for the key to a command; `mac_key` returns the key."""
    return click.option(
        "--mac-key-file",
        type=TypedPath(),
        metavar="FILE",
        envvar=MAC_KEY_VAR,
        expose_value=False,
        callback=_remember,
        help=f"The key that the store is sealed with; or set {MAC_KEY_VAR}.",
    )(command)


def mac_key() -> bytes | None:
    """The key that the user named for the running command; None: no key was named.

    Raises:
        StoreError: the file holds none, or others may read it.
        OSError: it cannot be read.
    """
    context = click.get_current_context(silent=True)
    path: str | None = context.meta.get(_PLACE) if context is not None else None
    return None if path is None else read_mac_key(path)
