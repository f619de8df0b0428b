"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext

from .extras import needs_extra

_NO_EXTRAS: Mapping[str, str] = {}


def lazy_names(
    package: str,
    homes: Mapping[str, str],
    *,
    modules: Collection[str] = (),
    extras: Mapping[str, str] = _NO_EXTRAS,
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package that imports its names lazily.

    Type checkers do not see them: the package imports the same names under ``TYPE_CHECKING``, so
    that a name which does not exist is an error there as well.

    Args:
        package: The package, by its ``__name__``.
        homes: Each module of the package, and the names that are taken from it, with spaces
            between them.
        modules: Modules of the package that are attributes of it without an import of their own.
        extras: The modules of `homes` that need an extra, and which.  Neither `dir()` nor a
            star has their names, which cannot be had without it.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def load(name: str) -> object:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = home_of[name]
        extra = extras.get(home)
        with needs_extra(extra, f"{package}.{name}") if extra else nullcontext():
            value: object = getattr(importlib.import_module(f"{package}.{home}"), name)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(name for name, home in home_of.items() if home not in extras)

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *modules})

    return load, listed, names
