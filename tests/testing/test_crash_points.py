"""Plans of crashes are written and read, and a trigger blows where the plan says."""

from __future__ import annotations

import pytest

from trio_ckpt.testing._crash_points import (
    CRASH_KINDS,
    POINT_KINDS,
    Crashed,
    CrashTrigger,
    Plan,
    Point,
    read_plan,
    write_plan,
)

EVERY = [
    Point(kind, number, crash, seed)
    for kind in POINT_KINDS
    for crash in CRASH_KINDS[kind]
    for number, seed in ((1, 0), (17, 999_999))
]


@pytest.mark.parametrize("plan", [(), *((point,) for point in EVERY), tuple(EVERY)])
def test_a_plan_is_read_as_it_was_written(plan: Plan) -> None:
    assert read_plan(write_plan(plan)) == plan


def test_the_text_is_what_people_type() -> None:
    assert write_plan((Point("store", 17, "power", 3),)) == "store:17,power,seed 3"
    assert write_plan(()) == "none"


@pytest.mark.parametrize("text", ["store:x,kill,seed 0", "files:1,cancel,seed 0", "none; none"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a crash|not cancelled"):
        read_plan(text)


def test_a_fuse_blows_once_at_its_point_and_nothing_passes_after() -> None:
    blown: list[str] = []
    trigger = CrashTrigger(Point("store", 2, "kill", 0), on_fire=lambda: blown.append("bang"))
    trigger.reach("files", "write", "a")
    trigger.reach("store", "before", "save")
    with pytest.raises(Crashed):
        trigger.reach("store", "after", "save")
    assert trigger.where == "after save"
    with pytest.raises(Crashed):
        trigger.reach("files", "write", "b")
    with pytest.raises(Crashed):
        trigger.check_alive()
    assert blown == ["bang"]
    assert trigger.counts == {"files": 1, "store": 1}
