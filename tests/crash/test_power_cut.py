"""A few real power cuts of an ext4; many by hand: ``python -m tests.crash --sweep ext4``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.crash.ext4 import CannotCutError, Disk
from tests.crash.forks import Zygote
from tests.crash.plain_writes import cut_plain_writes
from tests.crash.power_cut import (
    IN_SUITE,
    KINDS,
    PowerCutError,
    cut_power,
)
from tests.crash.steady import FLAWS

CAUGHT_WITHIN = 30  # cuts; most take one or two
SEED = 1

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    try:
        made = Disk.make()
    except CannotCutError as error:
        pytest.skip(str(error))
    with made:
        yield made
    mounts = subprocess.run(["mount"], capture_output=True, text=True, check=True).stdout
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    assert str(made.folder) not in mounts + loops, "something is left of it"
    assert not made.folder.exists()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_acknowledged_is_lost_by_power_cuts(kind: str, disk: Disk, zygote: Zygote) -> None:
    """What was said to be confirmed is, with its output and its line; the rest is done again."""
    figures = cut_power(disk, zygote, kind, IN_SUITE, SEED)
    assert figures["cuts"] >= IN_SUITE
    assert figures["acknowledged batches"] >= IN_SUITE, "too few to show anything"


def test_what_was_synced_before_a_cut_is_there_after_it(disk: Disk) -> None:
    """The disk is one: the control, which has nothing of ours in it, says so."""
    plain = cut_plain_writes(disk, IN_SUITE, SEED)
    assert plain.before > IN_SUITE, "too few to show anything"
    assert (plain.lost_before, plain.after) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flaw", FLAWS)
def test_what_is_not_durable_is_caught(kind: str, flaw: str, disk: Disk, zygote: Zygote) -> None:
    """A sweep that finds nothing in these would find nothing anywhere."""
    with pytest.raises(PowerCutError) as caught:
        cut_power(disk, zygote, kind, CAUGHT_WITHIN, SEED, flaw)
    wanted = {
        "output not synced": "is not what was confirmed|is missing",
        "said early": "were said to be confirmed, and are not",
        "not synced": "were said to be confirmed, and are not",
    }[flaw]
    caught.match(wanted)
