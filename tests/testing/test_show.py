"""How far it has come is told on a terminal, and nowhere else."""

from __future__ import annotations

import io

import pytest

from trio_ckpt.testing import _explore
from trio_ckpt.testing._explore import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_line_is_kept_up_to_date_on_a_terminal(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = kind()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.setattr(_explore, "EVERY_S", 0.0)
    with ProgressLine(2_000) as line:
        line.step(3)
        line.step(1_004)
    text = out.getvalue()
    if kind is io.StringIO:
        assert text == ""
    else:
        assert "1 of 2,000 plans, 3 crashes" in text
        assert "2 of 2,000 plans, 1,004 crashes" in text
        assert text.endswith("\r\x1b[K"), "the line is gone at the end"


def test_a_line_is_not_written_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", out := Terminal())
    now = iter([0.0, 0.1, 0.15, 0.4, 0.45])
    monkeypatch.setattr(_explore.time, "monotonic", lambda: next(now))
    with ProgressLine(10) as line:
        for crashes in (1, 2, 3, 4):
            line.step(crashes)
    assert out.getvalue().count("plans") == 1
