"""Connections to databases that refuse every statement, and remember whether they were closed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import attrs
import pytest


@attrs.define(eq=False)
class RefusingConnection:
    """A connection whose server refuses every statement."""

    raw: Any
    error: Exception
    is_closed: bool = False

    def execute(self, *_args: object) -> None:
        raise self.error

    def close(self) -> None:
        self.is_closed = True
        self.raw.close()


def refuse_all(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[RefusingConnection]:
    """Let the connections of a library refuse every statement; returns those that are opened."""
    opened, connect = list[RefusingConnection](), module.connect

    def connect_to_refuse(*args: Any, **options: Any) -> Any:
        error = module.OperationalError("refused")
        opened.append(RefusingConnection(connect(*args, **options), error))
        return opened[-1]

    monkeypatch.setattr(module, "connect", connect_to_refuse)
    return opened
