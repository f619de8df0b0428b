"""Rate and ETA: nothing is said before there is something to say."""

from __future__ import annotations

import pytest

from trio_ckpt._journal.statistics import WARM_AFTER_BATCHES, WARM_AFTER_S, eta_s, rate_per_s


@pytest.mark.parametrize(
    ("confirmed", "elapsed_s", "rate"),
    [
        (0, 0.0, None),
        (WARM_AFTER_BATCHES - 1, 1_000.0, None),
        (WARM_AFTER_BATCHES, WARM_AFTER_S / 2, None),
        (WARM_AFTER_BATCHES, WARM_AFTER_S, WARM_AFTER_BATCHES / WARM_AFTER_S),
        (500, 1_000.0, 0.5),
    ],
)
def test_a_rate_is_told_once_it_is_warm(
    confirmed: int, elapsed_s: float, rate: float | None
) -> None:
    assert rate_per_s(confirmed, elapsed_s) == rate


@pytest.mark.parametrize(
    ("left", "ahead", "rate", "eta"),
    [
        (100, 100, 4.0, 25.0),
        (None, None, 4.0, None),
        (None, 20, 4.0, 5.0),
        (100, 20, 4.0, 5.0),
        (100, 0, 4.0, None),
        (100, 100, None, None),
        (0, 0, None, 0.0),
        (0, 0, 4.0, 0.0),
    ],
)
def test_an_eta_needs_a_rate_and_work_that_is_ahead(
    left: int | None, ahead: int | None, rate: float | None, eta: float | None
) -> None:
    assert eta_s(left, ahead, rate) == eta
