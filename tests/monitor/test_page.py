"""The page in a real browser: what people see, what is never sent, and that everyone can use it.

It needs Debian's chromium (or another, named by CHROMIUM) and is skipped without one.
"""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.hangs import HANG_S
from tests.monitor.background import Background, background
from tests.monitor.client import ACTION_SECRET, SECRET
from tests.opening import begin
from tests.remote.site import F, open_site
from trio_ckpt import BatchFailedError, RetryRule, RetryTable, Run, RunStoppedError
from trio_ckpt.stores import MemoryStore

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"  # a build output, to be looked at
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=1_000 * HANG_S)  # ms: what is expected comes late on a busy machine
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look with")

HOSTILE = "<img src=x onerror=alert(1)>"


@attrs.define(eq=False)
class Stage:
    """A run that does what the tests say, in a thread."""

    found: Background
    run: Run | None = None
    go_on: Callable[[], None] = lambda: None

    def step(self) -> None:
        """One batch more."""
        self.found.call(self.go_on)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@attrs.define(eq=False)
class Tab:
    """A page, and what went over its wires."""

    page: Page
    complaints: list[str] = attrs.field(factory=list[str])
    urls: list[str] = attrs.field(factory=list[str])


@pytest.fixture
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    options = getattr(request, "param", {"viewport": DESKTOP})
    context = browser.new_context(**options)
    tab = Tab(context.new_page())
    tab.page.on("console", lambda m: m.type == "error" and tab.complaints.append(m.text))
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.page.on("request", lambda asked: tab.urls.append(asked.url))
    yield tab
    context.close()


@attrs.define(eq=False)
class Cable:
    """Leads to a server, and can be cut; it says the name of the server as a proxy does."""

    to: int
    port: int = 0
    ready: threading.Event = attrs.field(factory=threading.Event, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _mended: trio.Event = attrs.field(factory=trio.Event, init=False)

    def cut(self) -> None:
        self._scope.cancel()

    def mend(self) -> None:
        self._mended.set()

    async def run(self) -> None:
        while True:
            self._scope, self._mended = trio.CancelScope(), trio.Event()
            with self._scope:
                listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
                self.port = listeners[0].socket.getsockname()[1]
                self.ready.set()
                await trio.serve_listeners(self._carry, listeners)
            await self._mended.wait()

    async def _carry(self, near: trio.SocketStream) -> None:
        async with near, await trio.open_tcp_stream("127.0.0.1", self.to) as far:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far)
                await self._pump(far, near)
                nursery.cancel_scope.cancel()

    async def _pump(self, here: trio.SocketStream, there: trio.SocketStream) -> None:
        names = b"127.0.0.1:%d" % self.port, b"127.0.0.1:%d" % self.to
        try:
            while data := await here.receive_some():
                await there.send_all(bytes(data).replace(*names))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def perform(stage: Stage) -> None:
    """Streams of every kind; one goes on by a batch whenever the test says so."""
    with contextlib.suppress(RunStoppedError):
        await perform_until_stopped(stage)


async def perform_until_stopped(stage: Stage) -> None:
    async with begin(MemoryStore(), "github-2025") as run:
        stage.run = run
        send, receive = trio.open_memory_channel[None](100)
        stage.go_on = lambda: send.send_nowait(None)

        async def collect() -> None:
            async with run.open_stream("org/repo1", "pulls") as stream:
                async for batch in stream.batches(range(40)):
                    if batch.index >= 5:
                        await receive.receive()
                    batch.spend(cost_usd=0.25)
                    batch.complete(records=10, totals={"tokens": 512})

        async def stick() -> None:
            async with run.open_stream("org/repo2", "issues") as stream:
                async for batch in stream.batches(range(3)):
                    await batch.note("job", "j-1", usd=0.5)
                    await batch.reserve(usd=0.25)
                    await trio.sleep_forever()

        async def fail() -> None:
            async with run.open_stream("org/repo3", "pulls", on_fail="record") as stream:
                async for batch in stream.batches(range(9)):
                    batch.complete()
                    if batch.index == 2:
                        await stream.fail(PermissionError("403: not yours"), retryable=False)

        async def hostile() -> None:
            table = RetryTable([RetryRule((ValueError,), attempts=2, backoff_s=10_000)])
            async with run.open_stream(HOSTILE, "x", retry=table) as stream:
                async for batch in stream.batches(range(2)):
                    batch.fail(ValueError(HOSTILE))

        async with trio.open_nursery() as nursery:
            for work in (collect, stick, fail, hostile):
                nursery.start_soon(work)
            await stage.found.show(run, stuck_after_s=1.0)
            nursery.cancel_scope.cancel()


@pytest.fixture
def stage() -> Iterator[Stage]:
    found: list[Stage] = []

    async def program(served: Background) -> None:
        found.append(Stage(served))
        await perform(found[0])

    with background(program) as served:
        assert found[0].found is served
        yield found[0]


def look(tab: Tab, stage: Stage) -> Page:
    tab.page.goto(f"{stage.found.url}/#{SECRET}")
    expect(tab.page.locator("#run-name")).to_have_text("github-2025")
    return tab.page


def test_a_stop_is_seen_with_what_it_waits_for(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    expect(page.locator("#run-status")).to_have_text("in progress")
    assert stage.run is not None
    stage.run.request_stop()  # from the thread of the test
    expect(page.locator("#run-status")).to_have_text("stopping")
    expect(page.locator("#pending-note")).to_contain_text(
        re.compile(r"The stop waits at most 2\d s more for 2 batches: org/repo1/pulls batch 5, org")
    )
    expect(page.locator("#eta")).to_be_empty()
    expect(page).to_have_title(re.compile("^stopping"))


def test_progress_is_seen_to_move_without_a_reload(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    row = page.locator("#streams tr", has_text="org/repo1/pulls")
    expect(row).to_contain_text("12.5 %")  # 5 of 40
    expect(page.locator("#link-text")).to_have_text("live")
    for _ in range(15):
        stage.step()
    expect(row).to_contain_text("50.0 %")
    expect(page.locator("#facts div").first).to_contain_text("23 in this session")
    expect(page.locator("#facts div", has_text="cost_usd")).to_contain_text("5")
    expect(page.locator("#facts div", has_text="noted as spent")).to_contain_text("0.5")
    expect(page.locator("#facts div", has_text="not settled")).to_contain_text("0.25")
    assert "github-2025" in page.title()
    assert tab.complaints == []


def test_a_stuck_token_stands_out(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    stuck = page.locator("#pending tr.stuck", has_text="org/repo2/issues")
    expect(stuck).to_contain_text("stuck")
    expect(page.locator("#pending-panel")).to_have_class(re.compile("alarm"))
    expect(page.locator("#pending-count")).to_contain_text("stuck")
    expect(page.locator("#say")).to_contain_text("stuck")  # a screen reader is told


def test_a_token_that_waits_says_until_when_and_is_not_stuck(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    row = page.locator("#pending tbody tr", has_text="waiting until")
    expect(row).to_have_count(1)  # of the stream whose batch is tried again after 10,000 s
    expect(row).not_to_have_class(re.compile("stuck"))
    expect(page.locator("#pending-count")).to_contain_text("1 waiting")
    expect(row.locator(".waits")).to_be_hidden()  # the column of states says it
    page.set_viewport_size({"width": 390, "height": 844})
    expect(row.locator(".waits")).to_be_visible()


def test_an_ordinary_token_does_not(tab: Tab) -> None:
    async def program(found: Background) -> None:
        async with begin(MemoryStore()) as run:
            async with run.open_stream("s") as stream, stream.open_batch() as batch:
                await found.show(run, stuck_after_s=1_000.0)
                batch.complete()

    with background(program) as found:
        tab.page.goto(f"{found.url}/#{SECRET}")
        row = tab.page.locator("#pending tbody tr")
        expect(row).to_contain_text("at work")
        expect(row).not_to_have_class(re.compile("stuck"))
        expect(tab.page.locator("#pending-panel")).not_to_have_class(re.compile("alarm"))


def test_a_failure_is_told_with_its_reason(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    failed = page.locator("#failures tr", has_text="org/repo3/pulls")
    expect(failed).to_contain_text("PermissionError: 403: not yours")
    expect(failed).to_contain_text("failed")
    expect(page.locator("#streams tr", has_text="org/repo3/pulls")).to_contain_text("failed")


def test_names_and_messages_are_text_and_never_markup(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    expect(page.locator("#failures tr", has_text=HOSTILE)).to_have_count(1)
    expect(page.locator("img[src=x]")).to_have_count(0)
    assert tab.complaints == []


def test_so_is_the_name_of_a_run(tab: Tab) -> None:
    async def program(found: Background) -> None:
        async with begin(MemoryStore(), HOSTILE) as run:
            await found.show(run)

    with background(program) as found:
        tab.page.goto(f"{found.url}/#{SECRET}")
        expect(tab.page.locator("#run-name")).to_have_text(HOSTILE)
        expect(tab.page.locator("img[src=x]")).to_have_count(0)
    assert tab.complaints == []


def test_the_secret_is_in_no_url_and_nothing_comes_from_elsewhere(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    page.locator("#history-load").click()
    expect(page.locator("#history tbody tr")).to_have_count(1)
    assert tab.urls
    assert all(url.startswith(stage.found.url) for url in tab.urls)
    assert not any(SECRET in url for url in tab.urls[1:])
    assert SECRET not in tab.urls[0].partition("#")[0]
    assert SECRET not in page.url
    assert page.evaluate("history.length") <= 2
    assert page.context.cookies() == []


def test_without_the_secret_there_is_a_form(tab: Tab, stage: Stage) -> None:
    page = tab.page
    page.goto(stage.found.url)
    expect(page.locator("#gate")).to_be_visible()
    expect(page.locator("#secret")).to_be_focused()
    page.keyboard.type("x" * 20)
    page.keyboard.press("Enter")
    expect(page.locator("#gate-problem")).to_have_text("That is not the secret of this monitor.")
    expect(page.locator("#secret")).to_be_focused()
    page.keyboard.type(SECRET)
    page.keyboard.press("Enter")
    expect(page.locator("#run-name")).to_have_text("github-2025")
    page.reload()  # the tab remembers it
    expect(page.locator("#run-name")).to_have_text("github-2025")


def test_when_it_is_cut_off_it_says_so_and_comes_back_by_itself(tab: Tab) -> None:
    """The server goes away, and comes back at the same port."""
    store = MemoryStore()

    async def serve(found: Background, port: int) -> None:
        async with begin(store) as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    batch.complete()
            await found.show(run, port=port)

    async def first(found: Background) -> None:
        await serve(found, 0)

    page = tab.page
    with background(first) as found:
        port = int(found.url.rpartition(":")[2])
        page.goto(f"{found.url}/#{SECRET}")
        expect(page.locator("#link-text")).to_have_text("live")
        expect(page.locator("#run-name")).to_have_text("r")  # the first picture has come, too

    expect(page.locator("#link-text")).to_have_text("cut off")
    expect(page.locator("#banner")).to_contain_text("Cut off since")
    expect(page.locator("#run-name")).to_have_text("r")  # what was seen stays

    async def second(found: Background) -> None:
        await serve(found, port)

    with background(second):
        expect(page.locator("#link-text")).to_have_text("live")
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#say")).not_to_be_empty()


def test_a_network_that_is_cut_and_restored(tab: Tab, stage: Stage) -> None:
    """The server goes on meanwhile: what was missed is seen at once."""
    assert stage.found.serving is not None
    cable = Cable(stage.found.serving.port)
    stage.found.call(trio.lowlevel.spawn_system_task, cable.run)
    assert cable.ready.wait(HANG_S)
    page = tab.page
    page.goto(f"http://127.0.0.1:{cable.port}/#{SECRET}")
    row = page.locator("#streams tr", has_text="org/repo1/pulls")
    expect(row).to_contain_text("12.5 %")
    stage.found.call(cable.cut)
    expect(page.locator("#link-text")).to_have_text("cut off")
    for _ in range(3):
        stage.step()
    stage.found.call(cable.mend)
    expect(page.locator("#link-text")).to_have_text("live")
    expect(row).to_contain_text("20.0 %")
    stage.found.call(cable.cut)


def test_the_history_of_a_stream_comes_by_pages(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    for _ in range(30):
        stage.step()
    expect(page.locator("#streams tr", has_text="org/repo1/pulls")).to_contain_text("87.5 %")
    page.locator("#history-stream").select_option(label="checkpoints of org/repo1/pulls")
    page.locator("#history-load").click()
    expect(page.locator("#history tbody tr")).to_have_count(25)
    page.locator("#history-more").click()
    expect(page.locator("#history tbody tr")).to_have_count(35)
    expect(page.locator("#history-more")).to_be_hidden()


def test_several_runs_and_a_job_are_chosen_from_a_list(tab: Tab) -> None:
    async def program(found: Background) -> None:
        async with open_site(MemoryStore()) as site:
            await site.start_worker("box", slots=4)
            async with site.client() as client:
                await client.map(F + "square", range(5), job_id="job-squares")
            async with begin(site.store, "plain") as run:
                async with run.open_stream("s") as stream:
                    async for batch in stream.batches(range(3)):
                        batch.complete()
            await found.show(site.store, foreman=site.foreman)

    page = tab.page
    with background(program) as found:
        page.goto(f"{found.url}/#{SECRET}")
        expect(page.locator("#run-list li")).to_have_count(2)
        page.get_by_role("link", name="plain").click()
        expect(page.locator("#run-name")).to_have_text("plain")
        expect(page.locator("#job-panel")).to_be_hidden()
        page.get_by_role("link", name="job-squares").click()
        expect(page.locator("#run-name")).to_have_text("job-squares")
        expect(page.locator("#job-count")).to_have_text("5 of 5 done")
        expect(page.locator("#items tbody tr")).to_have_count(5)
        expect(page.locator("#items tr", has_text="job-squares.000000")).to_contain_text(
            "completed"
        )
        page.go_back()
        expect(page.locator("#run-name")).to_have_text("plain")
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.go_forward()
        expect(page.locator("#items tbody tr")).to_have_count(5)
        page.screenshot(path=SHOTS / "job.png", full_page=True)
    assert tab.complaints == []


def test_it_can_be_used_without_a_mouse(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    reached = set[str]()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"history-stream", "history-load", "action-secret"} <= reached


def test_a_stream_is_a_link_to_its_checkpoints(tab: Tab, stage: Stage) -> None:
    page = look(tab, stage)
    page.locator("#failures a", has_text="org/repo3/pulls").click()
    expect(page.locator("#history tbody tr")).to_have_count(4)  # three batches, and the failure
    expect(page.locator("#history")).to_contain_text("403: not yours")
    expect(page.locator("#history-scroll")).to_be_focused()
    address = page.url
    page.goto("about:blank")
    page.goto(address)  # a link that was sent to another user
    expect(page.locator("#history tbody tr")).to_have_count(4)
    page.locator("#streams a", has_text="org/repo1/pulls").click()
    expect(page.locator("#history tbody tr")).to_have_count(5)
    page.go_back()
    expect(page.locator("#history tbody tr")).to_have_count(4)
    assert tab.complaints == []


@pytest.mark.parametrize("written", ["nonsense", "[1]", "[]", '["not", "there"]', "%FF"])
def test_a_link_to_no_stream_shows_the_run(tab: Tab, stage: Stage, written: str) -> None:
    page = look(tab, stage)
    page.goto(f"{stage.found.url}/#/github-2025?stream={written}")
    page.reload()
    expect(page.locator("#run-name")).to_have_text("github-2025")
    expect(page.locator("#streams tbody tr")).to_have_count(4)


def test_a_stream_that_failed_for_good_does_not_run_again(tab: Tab) -> None:
    async def program(found: Background) -> None:
        async with begin(MemoryStore()) as run:
            table = RetryTable([RetryRule([ValueError], attempts=1, retryable=False)])
            with contextlib.suppress(BatchFailedError):
                async with run.open_stream("s", retry=table) as stream:
                    async for batch in stream.batches(range(2)):
                        batch.fail(ValueError("not valid"))
            await found.show(run)

    with background(program) as found:
        tab.page.goto(f"{found.url}/#{SECRET}")
        rows = tab.page.locator("#failures tbody tr")
        expect(rows.first).to_contain_text("not valid")
        expect(tab.page.locator("#failures")).not_to_contain_text("may run again")


def test_streams_and_runs_are_found_by_their_names(tab: Tab) -> None:
    async def program(found: Background) -> None:
        store = MemoryStore()
        for name in range(20):
            async with begin(store, f"crawl-{name:02}") as run:
                if name == 7:
                    await run.add_streams([(f"org/repo{n}", "pulls") for n in range(80)])
                    async with run.open_stream("org/repo42", "pulls") as stream:
                        async for batch in stream.batches(range(3)):
                            batch.complete()
        await found.show(store)

    page = tab.page
    with background(program) as found:
        page.goto(f"{found.url}/#{SECRET}")
        expect(page.locator("#run-list li")).to_have_count(20)
        page.get_by_label("Search runs by name").fill("WL-07")
        expect(page.locator("#run-list li")).to_have_count(1)
        page.locator("#run-list a").click()
        expect(page.locator("#run-name")).to_have_text("crawl-07")
        page.get_by_label("Search streams by name").fill("REPO42")
        expect(page.locator("#streams tbody tr")).to_have_count(1)
        expect(page.locator("#streams tbody tr")).to_contain_text("org/repo42/pulls")
        page.get_by_label("Search streams by name").fill("nowhere")
        expect(page.locator("#streams")).to_contain_text("No stream has that in its name.")
        page.get_by_label("Search streams by name").fill("")
        expect(page.locator("#streams tbody tr")).to_have_count(12)
        page.get_by_label("Search runs by name").fill("")
        expect(page.locator("#run-list li")).to_have_count(20)
    assert tab.complaints == []


def test_the_answer_to_an_action_is_where_one_looks(tab: Tab) -> None:
    """A wrong secret is told in words of the page, beside the button that was pressed."""

    async def program(found: Background) -> None:
        with contextlib.suppress(RunStoppedError):
            async with begin(MemoryStore()) as run:
                await found.show(run)

    page = tab.page
    with background(program) as found:
        page.goto(f"{found.url}/#{SECRET}")
        note, button = page.locator("#actions-note"), page.locator("#action-stop")
        page.locator("#action-secret").fill("neither-the-one-nor-the-other")
        button.click()
        expect(note).to_contain_text("That is not the secret for actions")
        expect(note).not_to_contain_text("Bearer")
        expect(note).to_be_in_viewport()
        expect(button).to_be_in_viewport()
        page.locator("#action-secret").fill(ACTION_SECRET)
        button.click()
        expect(note).to_contain_text("stops when its open batches")
        expect(note).to_be_in_viewport()


def test_an_action_needs_its_own_secret(tab: Tab) -> None:
    stopped: list[bool] = []

    async def program(found: Background) -> None:
        try:
            async with begin(MemoryStore()) as run:
                await found.show(run)
                stopped.append(run.is_stopping)
        except RunStoppedError:
            pass

    page = tab.page
    with background(program) as found:
        page.goto(f"{found.url}/#{SECRET}")
        expect(page.locator("#run-name")).to_have_text("r")
        page.locator("#action-secret").fill(SECRET)
        page.get_by_role("button", name="Stop in good order").click()
        expect(page.locator("#actions-note")).to_contain_text("allows no actions")
        page.locator("#action-secret").fill(ACTION_SECRET)
        page.get_by_role("button", name="Stop in good order").click()
        expect(page.locator("#actions-note")).to_contain_text("stops when its open batches")
    assert stopped == [True]


SIGHTS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": DESKTOP},
    "desktop-dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "is_mobile": True, "has_touch": True},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "is_mobile": True},
}


@pytest.mark.parametrize(("tab", "name"), [(o, n) for n, o in SIGHTS.items()], indirect=["tab"])
def test_it_can_be_read_at_every_size_and_nothing_is_cut(tab: Tab, name: str, stage: Stage) -> None:
    """No fault that axe calls serious, no sideways scrolling; a picture is kept."""
    page = look(tab, stage)
    expect(page.locator("#pending tr.stuck").first).to_be_visible()
    page.locator("#history-load").click()
    expect(page.locator("#history tbody tr")).to_have_count(1)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
    found = Axe().run(page)
    grave = [
        f"{one['id']}: {one['help']}: {[node['html'] for node in one['nodes']][:3]}"
        for one in found.response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("sessionStorage.clear()")
    page.goto(stage.found.url)
    page.reload()
    expect(page.locator("#gate")).to_be_visible()
    grave = [one for one in Axe().run(page).response["violations"] if one["impact"] == "serious"]
    assert grave == []
