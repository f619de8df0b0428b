"""Spans of OpenTelemetry, one per attempt at a batch.

A span costs some 30 microseconds, so there is none for anything smaller than a batch.
"""

from __future__ import annotations

from typing import Any

import attrs

from ._errors import TrioCkptError
from ._words import stream_name
from .abc import Attempt, AttemptEnd, Observer

SPAN_NAME = "trio_ckpt.batch"
_BAD_ENDS = (AttemptEnd.FAILED, AttemptEnd.RETRIED)


def trace_batches(tracer_provider: Any = None) -> Observer:
    """Make a span of every attempt at a batch: ``open_run(..., observe=[trace_batches()])``.

    The span is the current one while the body runs, so what the body calls is traced below it.
    It ends when the checkpoint is durable; its attributes name run, stream, batch and attempt,
    and what became of it.  An attempt that failed has the status ERROR and the reason.

    It needs ``opentelemetry-api``, the extra ``otel``, which is imported by this call alone.

    Args:
        tracer_provider: Of OpenTelemetry; default: the global one.

    Raises:
        TrioCkptError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import context, trace
    except ImportError as error:
        raise TrioCkptError(
            "trace_batches needs OpenTelemetry: pip install 'trio-ckpt[otel]'"
        ) from error
    tracer = trace.get_tracer("trio_ckpt", tracer_provider=tracer_provider)
    return _BatchTracer(tracer, context, trace)


@attrs.define(eq=False)
class _Span:
    span: Any
    before: Any  # the context that the body was entered with


@attrs.define(eq=False)
class _BatchTracer(Observer):
    _tracer: Any
    _context: Any
    _trace: Any
    _spans: dict[Attempt, _Span] = attrs.field(factory=dict[Attempt, _Span], init=False)

    def attempt_began(self, attempt: Attempt) -> None:
        before = self._context.get_current()
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
        self._context.attach(self._trace.set_span_in_context(span))

    def attempt_settled(self, attempt: Attempt) -> None:
        if (entry := self._spans.get(attempt)) is not None:
            entry.span.add_event("settled")

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        if (entry := self._spans.get(attempt)) is None:
            return
        entry.span.set_attribute("trio_ckpt.end", end.value)
        if end in _BAD_ENDS:
            entry.span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error))
        entry.span.end()

    def attempt_left(self, attempt: Attempt) -> None:
        # The context of before is set, not detached to: a token of OpenTelemetry is good only
        # where it was made, and a worker may be left in another context by its body.
        if (entry := self._spans.pop(attempt, None)) is not None:
            self._context.attach(entry.before)
