"""The loggers of the library, as its source has them."""

from __future__ import annotations

import re
from pathlib import Path

import trio_ckpt

PACKAGE = Path(trio_ckpt.__file__).parent
MADE = re.compile(r"\bget_?[lL]ogger\((.*?)\)")


def module_of(path: Path) -> str:
    """The name of the module in a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def made_in(path: Path) -> list[str]:
    """The calls that get a logger, without the definition of `get_logger`."""
    text = path.read_text("utf-8").replace("def get_logger(name: str)", "")
    return [found[0] for found in MADE.finditer(text)]


LOGGERS = sorted(
    module_of(path) for path in PACKAGE.rglob("*.py") if "get_logger(__name__)" in made_in(path)
)
"""One for each module that logs."""
