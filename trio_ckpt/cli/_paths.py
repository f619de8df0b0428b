"""Paths as they are typed."""

from __future__ import annotations

import os
import re
from typing import Any

import click

_HOME = re.compile(r"([a-z]+:)?~")


class TypedPath(click.Path):
    """A path on the command line, or in a variable; a shell expands ``~`` at its very begin only.

    ``--key=~/x`` and ``sqlite:~/x`` come as they are typed, and would make a folder of that name.
    """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """See `click.Path`; what begins with ``~`` fails."""
        if isinstance(value, str) and _HOME.match(value):
            self.fail(f"{value!r} begins with '~', which the shell left: write $HOME", param, ctx)
        return super().convert(value, param, ctx)
