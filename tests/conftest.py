"""In CI a skipped test is a failure: what was not run was not shown to hold.

There is one exception.  A test that is marked `privileged` needs what only root has on some
machines, such as mounting a file system.  It tries, and where the machine does not let it, it is
skipped with a reason that begins with `NO_PRIVILEGE`, in CI as well: a container without loop
devices cannot be given any, and no developer has to run tests as root.  For every other reason,
a program that is not installed say, its skip is a failure like any.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

# No timing decides a test: beside other work an example may take any time.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# Shells have what they start in the background ignore it, and so would what the tests start:
# being ignored is passed on, a handler is not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


NO_PRIVILEGE = "no privilege: "


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if hasattr(report, "wasxfail"):
            reason = f"xfail: {report.wasxfail}"
            del report.wasxfail  # pytest counts no failure of a report that has it
        if "privileged" in getattr(report, "keywords", ()) and NO_PRIVILEGE in str(reason):
            return
        report.outcome = "failed"
        report.longrepr = f"CI allows no skips: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
