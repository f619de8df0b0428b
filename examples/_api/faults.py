"""Faults on request: which request meets which answer, as a plan that a test can write down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

import attrs

_SPELLED = re.compile(
    r"(?P<what>[1-5]\d\d|reset|slow)(:(?P<seconds>\d{1,5}))?(\*(?P<times>[1-9]\d{0,5}))?"
    r" (?P<target>/\S*)"
)


@attrs.frozen
class Fault:
    """What the first requests of a target meet instead of its records.

    Attributes:
        target: A path, and query parameters that the request must have, if any.
        status: Answer with this status; None: with the records.
        retry_after_s: What the answer's Retry-After says.
        delay_s: Wait so long before answering.
        is_reset: Reset the connection instead of answering.
        times: How many requests meet it.
    """

    target: str
    status: int | None = None
    retry_after_s: int | None = None
    delay_s: float = 0.0
    is_reset: bool = False
    times: int = 1

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``WHAT[:SECONDS][*TIMES] TARGET``.

        WHAT is a status, "reset" or "slow"; SECONDS are those of Retry-After, or of the delay:
        ``429:2 /blocks/kana/hiragana/characters?page=2``, ``500*3 /blocks``.

        Raises:
            ValueError: it is spelled in another way.
        """
        match = _SPELLED.fullmatch(text)
        if match is None:
            raise ValueError(f"a fault is WHAT[:SECONDS][*TIMES] TARGET, not {text!r}")
        what, seconds = match["what"], match["seconds"]
        times, target = int(match["times"] or 1), match["target"]
        if what == "reset":
            return cls(target, is_reset=True, times=times)
        if what == "slow":
            return cls(target, delay_s=int(seconds or 1), times=times)
        retry_after_s = None if seconds is None else int(seconds)
        return cls(target, status=int(what), retry_after_s=retry_after_s, times=times)

    def is_for(self, path: str, query: Mapping[str, str]) -> bool:
        """Whether a request is one of those that it is for."""
        wanted, _, words = self.target.partition("?")
        return path == wanted and dict(parse_qsl(words)).items() <= query.items()


@attrs.define(eq=False)
class Plan:
    """The faults that are still to come; each request meets at most one, the first for it."""

    faults: list[Fault] = attrs.Factory(list)

    def take(self, path: str, query: Mapping[str, str]) -> Fault | None:
        """The fault of this request, counted as met."""
        for position, fault in enumerate(self.faults):
            if fault.is_for(path, query):
                left = attrs.evolve(fault, times=fault.times - 1)
                self.faults[position : position + 1] = [left] if left.times else []
                return fault
        return None
