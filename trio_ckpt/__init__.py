"""Resumable work for trio programs.

A room imports only from rooms below it; `tests/test_rooms.py` holds it to that.

    9  cli                  the command trio-ckpt
    8  monitor   engines    a page and a REST API; functions over items, no server to start
    7  remote               clients; _foreman, _worker; _wire: what they say to each other
       testing              crashes that are planned, and the contract of every store
    6  _maintenance         what an owner does: verify, repair, compact, export, explain
       progress             a live display
       blocking             the runs of synchronous programs; trio in a thread beside them
       from_asyncio         bridges between asyncio and trio
    5  _runs                what users hold: runs, streams, loops, how they resume
    4  sinks                rows in a database of the user, with the record of their batch
       _commit              the law of order: batch, gate, group commit, confirmed
    3  _tokens              one-shot tokens and their registry
       state                what a loop goes on from: _tree (values), _arrays (NumPy)
       outputs              durable files
       stores               bytes in, bytes out: _local; _sqlite, _json, _postgres, _objects
       abc                  the contracts, for users
    2  _journal             records, progress, history, sums, the contract of stores
       _buckets             requests to object stores, for stores and outputs
    1  _util                errors, checked arguments, plain values, text, threads
"""

import typing

from ._util.lazy import lazy_names as _lazy_names

if typing.TYPE_CHECKING:
    from ._commit.awaits import NeverAwaitedError as NeverAwaitedError
    from ._commit.batch import Batch as Batch
    from ._commit.http_retries import http_retries as http_retries
    from ._commit.limits import Limits as Limits
    from ._commit.rate_limit import RateLimit as RateLimit, RequestTurn as RequestTurn
    from ._commit.retry import (
        Again as Again,
        GiveUp as GiveUp,
        RetryRule as RetryRule,
        RetryTable as RetryTable,
        Then as Then,
    )
    from ._commit.snapshots import Snapshots as Snapshots
    from ._journal.history import (
        CheckpointView as CheckpointView,
        SessionView as SessionView,
        read_history as read_history,
        read_sessions as read_sessions,
    )
    from ._journal.progress import FailedAttempt as FailedAttempt, Pin as Pin, Progress as Progress
    from ._journal.record import (
        CheckpointResult as CheckpointResult,
        ErrorInfo as ErrorInfo,
        Output as Output,
        Status as Status,
    )
    from ._journal.statistics import (
        ArrayStatistics as ArrayStatistics,
        RunStatistics as RunStatistics,
        StateStatistics as StateStatistics,
        Stopping as Stopping,
        StreamStatistics as StreamStatistics,
        Waiting as Waiting,
    )
    from ._journal.summary import Summary as Summary
    from ._maintenance.compact import Compacted as Compacted
    from ._maintenance.drift import (
        Drift as Drift,
        find_drift as find_drift,
    )
    from ._maintenance.export import ExportSummary as ExportSummary, export_run as export_run
    from ._maintenance.import_ import import_run as import_run
    from ._maintenance.offline import (
        Maintenance as Maintenance,
        open_maintenance as open_maintenance,
    )
    from ._maintenance.read_arrays import read_arrays as read_arrays
    from ._runs.code import Code as Code
    from ._runs.collection import Collection as Collection
    from ._runs.lifecycle import open_run as open_run
    from ._runs.loop import Batches as Batches
    from ._runs.open_collection import open_collection as open_collection
    from ._runs.parallel import run_batches as run_batches
    from ._runs.partition import Partition as Partition, partition_of as partition_of
    from ._runs.phase import Phase as Phase
    from ._runs.run import Run as Run
    from ._runs.session import ResumeReport as ResumeReport
    from ._runs.stream import Stream as Stream
    from ._runs.stream_table import Listed as Listed
    from ._runs.tracing import (
        TaskTracer as TaskTracer,
        trace_batches as trace_batches,
        trace_context as trace_context,
        trace_tasks as trace_tasks,
    )
    from ._tokens.coordinator import CheckpointCoordinator as CheckpointCoordinator
    from ._tokens.token import (
        CheckpointToken as CheckpointToken,
        TokenRegistry as TokenRegistry,
        TokenState as TokenState,
    )
    from ._util.errors import (
        ArchiveError as ArchiveError,
        BatchCancelledError as BatchCancelledError,
        BatchFailedError as BatchFailedError,
        BatchWithdrawnError as BatchWithdrawnError,
        CannotRedoError as CannotRedoError,
        CannotRunAgainError as CannotRunAgainError,
        CheckpointFailedError as CheckpointFailedError,
        CodeChangedError as CodeChangedError,
        ConfigChangedError as ConfigChangedError,
        DuplicateCheckpointError as DuplicateCheckpointError,
        ForkedProcessError as ForkedProcessError,
        LeaseLostError as LeaseLostError,
        NotEncodableError as NotEncodableError,
        NoThreadError as NoThreadError,
        OutputClaimedError as OutputClaimedError,
        OutputError as OutputError,
        OutputExistsError as OutputExistsError,
        OutputInvalidError as OutputInvalidError,
        OutputsMissingError as OutputsMissingError,
        PartitionsLeftError as PartitionsLeftError,
        RunLockedError as RunLockedError,
        RunStoppedError as RunStoppedError,
        SaveOutcomeUnknownError as SaveOutcomeUnknownError,
        SinkClosedError as SinkClosedError,
        SinkError as SinkError,
        SinkFencedError as SinkFencedError,
        SourceChangedError as SourceChangedError,
        StoreConflictError as StoreConflictError,
        StoreDamagedError as StoreDamagedError,
        StoreError as StoreError,
        StoreVersionError as StoreVersionError,
        StreamBusyError as StreamBusyError,
        StreamEndedError as StreamEndedError,
        StreamFailedError as StreamFailedError,
        StreamsStillOpenError as StreamsStillOpenError,
        TokenNeverSettledError as TokenNeverSettledError,
        TrioCkptError as TrioCkptError,
        UnknownRunError as UnknownRunError,
        UnknownStreamError as UnknownStreamError,
    )
    from ._util.extras import MissingExtraError as MissingExtraError
    from ._util.version import __version__ as __version__
    from .state import Frontier as Frontier, StateChangedError as StateChangedError
    from .state._retention import Retention as Retention
else:  # a process imports what it uses: a command or a worker needs no loops
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_commit.awaits": "NeverAwaitedError",
            "_commit.batch": "Batch",
            "_commit.http_retries": "http_retries",
            "_commit.limits": "Limits",
            "_commit.rate_limit": "RateLimit RequestTurn",
            "_commit.retry": "Again GiveUp RetryRule RetryTable Then",
            "_commit.snapshots": "Snapshots",
            "_journal.history": "CheckpointView SessionView read_history read_sessions",
            "_journal.progress": "FailedAttempt Pin Progress",
            "_journal.record": "CheckpointResult ErrorInfo Output Status",
            "_journal.statistics": "ArrayStatistics RunStatistics StateStatistics Stopping "
            "StreamStatistics Waiting",
            "_journal.summary": "Summary",
            "_maintenance.compact": "Compacted",
            "_maintenance.drift": "Drift find_drift",
            "_maintenance.export": "ExportSummary export_run",
            "_maintenance.import_": "import_run",
            "_maintenance.offline": "Maintenance open_maintenance",
            "_maintenance.read_arrays": "read_arrays",
            "_runs.code": "Code",
            "_runs.collection": "Collection",
            "_runs.loop": "Batches",
            "_runs.lifecycle": "open_run",
            "_runs.open_collection": "open_collection",
            "_runs.parallel": "run_batches",
            "_runs.partition": "Partition partition_of",
            "_runs.phase": "Phase",
            "_runs.run": "Run",
            "_runs.session": "ResumeReport",
            "_runs.stream": "Stream",
            "_runs.stream_table": "Listed",
            "_runs.tracing": "TaskTracer trace_batches trace_context trace_tasks",
            "_tokens.coordinator": "CheckpointCoordinator",
            "_tokens.token": "CheckpointToken TokenRegistry TokenState",
            "_util.errors": "ArchiveError BatchCancelledError BatchFailedError BatchWithdrawnError "
            "CannotRedoError CannotRunAgainError CheckpointFailedError CodeChangedError "
            "ConfigChangedError DuplicateCheckpointError ForkedProcessError LeaseLostError "
            "NotEncodableError NoThreadError OutputClaimedError OutputError OutputExistsError "
            "OutputInvalidError OutputsMissingError PartitionsLeftError RunLockedError "
            "RunStoppedError "
            "SaveOutcomeUnknownError SinkClosedError SinkError SinkFencedError SourceChangedError "
            "StoreConflictError StoreDamagedError StoreError StoreVersionError "
            "StreamBusyError StreamEndedError StreamFailedError StreamsStillOpenError "
            "TokenNeverSettledError TrioCkptError UnknownRunError UnknownStreamError",
            "_util.extras": "MissingExtraError",
            "_util.version": "__version__",
            "state": "Frontier StateChangedError",
            "state._retention": "Retention",
        },
        modules=("outputs", "sinks", "state", "stores"),
    )
