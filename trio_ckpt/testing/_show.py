"""What a user sees while crashes are explored."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

EVERY_S = 0.2  # often enough to look alive
MAX_SAID = 10  # lines of the log that an error repeats
# Each session of an exploration logs that it resumes, or stops.
EXPECTED = ("trio_ckpt._runs.announce", "trio_ckpt._commit.shutdown")


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in EXPECTED and len(self._said) < MAX_SAID:
            self._said.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def quiet_log() -> Generator[list[str]]:
    """Collect the library's warnings while the block runs: dying programs log many."""
    logger, said = logging.getLogger("trio_ckpt"), list[str]()
    listener, was = _Listener(said), logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.propagate = was
        logger.removeHandler(listener)


class ProgressLine:
    """A progress line on the terminal; nothing where there is no terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = self._shown = time.monotonic()
        self._is_live = sys.stderr.isatty()

    def step(self, crashes: int) -> None:
        """Count one more plan."""
        self._done += 1
        now = time.monotonic()
        if not self._is_live or now - self._shown < EVERY_S:
            return
        self._shown = now
        rate = crashes / (now - self._began) * 60
        left = f"{self._done:,} of {self._total:,} plans"
        self._write(f"\r\x1b[K{left}, {crashes:,} crashes, {rate:,.0f} a minute")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
