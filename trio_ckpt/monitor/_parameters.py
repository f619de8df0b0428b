"""The parameters of paths and queries, and how they are read."""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs
import msgspec

from .._util.plain import StreamKey

MAX_PAGE = 200  # lines of one answer
MAX_CURSOR_CHARS = 100
MAX_OFFSET = 10_000_000


class BadRequestError(Exception):
    """A parameter does not fit the table; the message says which and why."""


@attrs.frozen
class Parameter:
    """A parameter of a path or a query.

    Attributes:
        name: As it is written.
        kind: ``integer``, ``string``, or ``key``: a JSON array of the parts of a stream's key.
        description: What it is for.
        place: Where it stands.
        default: What it is if it is left out; None with `is_required` False: nothing.
        is_required: Whether it may be left out.
        minimum: Of an integer.
        maximum: Of an integer.
        max_chars: Of a string.
        pattern: That a string matches as a whole.
    """

    name: str
    kind: Literal["integer", "string", "key"]
    description: str
    place: Literal["path", "query"] = "query"
    default: int | str | None = None
    is_required: bool = False
    minimum: int = 0
    maximum: int = MAX_PAGE
    max_chars: int = MAX_CURSOR_CHARS
    pattern: str = ".*"

    def parse(self, text: str) -> int | str | StreamKey:
        """The value of a parameter's text.

        Raises:
            BadRequestError: it is not one.
        """
        if self.kind == "integer":
            return self._parse_integer(text)
        if len(text) > self.max_chars or not re.fullmatch(self.pattern, text, re.DOTALL):
            raise BadRequestError(
                f"{self.name}: at most {self.max_chars} characters, {self.pattern}"
            )
        if self.kind == "string":
            return text
        try:
            return msgspec.json.decode(text.encode(), type=tuple[str, ...])
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
            raise BadRequestError(f'{self.name} is a JSON array of texts: ["a", "b"]') from error

    def _parse_integer(self, text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) is None:
            raise BadRequestError(f"{self.name} is a whole number, in digits")
        value = int(text)
        if not self.minimum <= value <= self.maximum:
            raise BadRequestError(f"{self.name} is from {self.minimum} to {self.maximum}")
        return value

    def described(self) -> dict[str, Any]:
        """The parameter as a schema of the OpenAPI document."""
        if self.kind == "key":
            parts = {"type": "array", "items": {"type": "string"}}
            return {"content": {"application/json": {"schema": parts}}}
        if self.kind == "integer":
            schema: dict[str, Any] = {"minimum": self.minimum, "maximum": self.maximum}
            schema["type"] = "integer"
        else:
            schema = {"type": "string", "maxLength": self.max_chars}
            if self.place == "path":
                schema["minLength"] = 1
            if self.pattern != ".*":
                schema["pattern"] = f"^{self.pattern}$"
        if self.default is not None:
            schema["default"] = self.default
        return {"schema": schema}
