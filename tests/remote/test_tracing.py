"""Spans of work items are below the span of the client that submitted the job, wherever it is."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, export
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from trio.testing import MockClock

from tests.remote.site import F, open_site
from trio_ckpt import trace_context, trace_tasks
from trio_ckpt.remote import TaskFailedError
from trio_ckpt.stores import MemoryStore


async def test_an_attempt_is_a_span_below_that_of_the_client(autojump_clock: MockClock) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    async with open_site(MemoryStore()) as site:
        await site.start_worker("w", tracer=trace_tasks(provider))
        async with site.client() as client:
            with provider.get_tracer("user").start_as_current_span("mine") as mine:
                context = trace_context()
            good = await client.map(F + "square", [3], trace=context, job_id="job-good")
            (bad,) = await client.map(
                F + "fail_odd", [7], trace=context, job_id="job-bad", errors="collect"
            )
    assert good == [9]
    assert isinstance(bad, TaskFailedError)
    spans = {
        span.attributes["trio_ckpt.job"]: span
        for span in exporter.get_finished_spans()
        if span.name == "trio_ckpt.task" and span.attributes is not None
    }
    assert spans.keys() == {"job-good", "job-bad"}
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == mine.get_span_context().span_id
        assert span.context.trace_id == mine.get_span_context().trace_id
        assert span.attributes is not None
        assert (span.attributes["trio_ckpt.index"], span.attributes["trio_ckpt.attempt"]) == (0, 1)
    assert spans["job-good"].status.status_code is trace.StatusCode.UNSET
    assert spans["job-bad"].status.status_code is trace.StatusCode.ERROR
    assert "ValueError" in (spans["job-bad"].status.description or "")
