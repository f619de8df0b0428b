"""Spans of OpenTelemetry: one per attempt at a batch, one per attempt at a work item.

A span costs some 30 microseconds, so nothing smaller has one.  The context in which a job is
submitted travels to the workers as text (W3C Trace Context, or what the program has set up), so
that their spans are below the span of the submitter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from .._journal.observer import Attempt, AttemptEnd, Observer
from .._util.extras import needs_extra
from .._util.shown import Shown
from .._util.text import stream_name

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

SPAN_NAME = "trio_ckpt.batch"
TASK_SPAN_NAME = "trio_ckpt.task"
_BAD_ENDS = (AttemptEnd.FAILED, AttemptEnd.RETRIED)


def trace_batches(tracer_provider: TracerProvider | None = None) -> Observer:
    """Make a span of every attempt at a batch: ``open_run(..., observe=[trace_batches()])``.

    The span is the current one while the body runs, so what the body calls is traced below it.
    It ends when the checkpoint is durable; its attributes name run, stream, batch and attempt,
    and how the attempt ended.  An attempt that failed has the status ERROR and the reason.

    It needs ``opentelemetry-api``, the extra ``otel``, which only this call imports.

    Args:
        tracer_provider: A tracer provider of OpenTelemetry; default: the global one.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """
    with needs_extra("otel", "trace_batches"):
        from opentelemetry import trace
    return _BatchTracer(trace.get_tracer("trio_ckpt", tracer_provider=tracer_provider))


@attrs.define(eq=False, repr=False)
class _Span:
    span: Span
    before: Context  # the context that the body was entered with


@attrs.define(eq=False, repr=False)
class _BatchTracer(Observer):
    _tracer: Tracer
    _spans: dict[Attempt, _Span] = attrs.field(factory=dict[Attempt, _Span], init=False)

    def attempt_began(self, attempt: Attempt) -> None:
        from opentelemetry import context, trace

        before = context.get_current()
        span = self._tracer.start_span(
            SPAN_NAME,
            attributes={
                "trio_ckpt.run": attempt.run_id,
                "trio_ckpt.stream": stream_name(attempt.stream),
                "trio_ckpt.batch": attempt.batch_index,
                "trio_ckpt.attempt": attempt.number,
            },
        )
        self._spans[attempt] = _Span(span, before)
        context.attach(trace.set_span_in_context(span))

    def attempt_settled(self, attempt: Attempt) -> None:
        if (entry := self._spans.get(attempt)) is not None:
            entry.span.add_event("settled")

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        if (entry := self._spans.get(attempt)) is None:
            return
        entry.span.set_attribute("trio_ckpt.end", end.value)
        if end in _BAD_ENDS:
            _set_failed(entry.span, error)
        entry.span.end()

    def attempt_left(self, attempt: Attempt) -> None:
        # The old context is attached, not restored by its token: a token of OpenTelemetry is
        # valid only where it was made, and a body may leave its worker in another context.
        if (entry := self._spans.pop(attempt, None)) is not None:
            from opentelemetry import context

            context.attach(entry.before)


# -- work items on other machines ----------------------------------------------------------------


def trace_context() -> dict[str, str]:
    """The current span as text: ``client.map(..., trace=trace_context())``.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """
    with needs_extra("otel", "trace_context"):
        from opentelemetry import propagate
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


@attrs.frozen(eq=False, repr=False)
class TaskTracer(Shown):
    """Makes spans of a worker's attempts at work items; made by `trace_tasks`."""

    _tracer: Tracer

    def _shown(self) -> Iterable[tuple[str, str]]:
        return [("", ""), ("spans", TASK_SPAN_NAME)]

    @contextmanager
    def span(
        self, attributes: Mapping[str, str | int], carrier: Mapping[str, str]
    ) -> Generator[Callable[[str], None]]:
        """A span around the block, below the span that `trace_context` gave.

        Args:
            attributes: The attributes of the span.
            carrier: The context of the submitter; empty: there is none.

        Yields:
            A function to call with a reason if the attempt failed.
        """
        from opentelemetry import context, propagate, trace

        outer = propagate.extract(dict(carrier))
        span = self._tracer.start_span(TASK_SPAN_NAME, context=outer, attributes=attributes)
        token = context.attach(trace.set_span_in_context(span, outer))
        try:
            yield lambda reason: _set_failed(span, reason)
        finally:
            context.detach(token)
            span.end()


def trace_tasks(tracer_provider: TracerProvider | None = None) -> TaskTracer:
    """Make a span of every attempt at a work item: ``run_worker(..., tracer=trace_tasks())``.

    The span is the current one while the function runs, and its attributes name the item, its
    place in the job, and the attempt.  An attempt that failed has the status ERROR and the reason.

    It needs ``opentelemetry-api``, the extra ``otel``, which only this call imports.

    Args:
        tracer_provider: Of OpenTelemetry; default: the global one.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """
    with needs_extra("otel", "trace_tasks"):
        from opentelemetry import trace
    return TaskTracer(trace.get_tracer("trio_ckpt", tracer_provider=tracer_provider))


def _set_failed(span: Span, reason: str | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, reason))
