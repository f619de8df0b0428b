"""Resumable work for trio programs.

The floor plan; a file imports only from floors below its own:

    L6  remote/     a foreman, workers, clients       engines/    the same, without a server
    L5  _loops      run_batches                       progress    a live display
        _drift      files against records             _maintain   for commands
        _archive, _export, _import                    _explain…   what a resume would do
        _look       a run from outside                _machine    what a machine is good for
        _tracing    spans of batches
    L4  _batch      one attempt                       _stop       stopping in good order
        _staging    files of a stream                 _desk       one open stream
        _kept       a state as a store has it         _keeper     the state of a stream
        _gate, _ways   the law of order               _walk       loops over batches
        _redo       back to work                      _rescan     outputs without records
        _stream     what users hold                   _verify     outputs on resume
        _resume     opening a stream                  _phase      done once
        _session    what was found                    _manifest   what a complete run left
        _fresh      beginning again                   _roster     streams of an open run
        _waits      for batches                       _run, _open   open_run
        _live       for other processes
    L3  _coordinator  tokens without I/O              _lane, _saver   group commit
        _history    for readers
    L2  _registry   pending tokens                    _config, _retry, _source
        _groups, _statistics                          sums of streams
        _observe    telling observers
        state/      codecs, the frontier              stores/     bytes in, bytes out
    L1  abc, _stored  every contract                  _token      the token's table
        outputs     durable files
    L0  _errors, _extras, _ranges, _totals, _values, _records, _progress, _portal,
        _uninterrupted, _patience, _threads, _words, _log, _forks, _awaits
"""

from ._awaits import NeverAwaitedError as NeverAwaitedError
from ._batch import Batch as Batch
from ._compact import Compacted as Compacted
from ._coordinator import CheckpointCoordinator as CheckpointCoordinator
from ._drift import Drift as Drift, DriftProblem as DriftProblem, find_drift as find_drift
from ._errors import (
    ArchiveError as ArchiveError,
    BatchCancelledError as BatchCancelledError,
    BatchFailedError as BatchFailedError,
    BatchWithdrawnError as BatchWithdrawnError,
    CannotRedoError as CannotRedoError,
    CheckpointFailedError as CheckpointFailedError,
    ConfigChangedError as ConfigChangedError,
    DuplicateCheckpointError as DuplicateCheckpointError,
    ForkedProcessError as ForkedProcessError,
    NotEncodableError as NotEncodableError,
    NoThreadError as NoThreadError,
    OutputClaimedError as OutputClaimedError,
    OutputError as OutputError,
    OutputExistsError as OutputExistsError,
    OutputInvalidError as OutputInvalidError,
    OutputsMissingError as OutputsMissingError,
    RunLockedError as RunLockedError,
    RunStoppedError as RunStoppedError,
    SaveOutcomeUnknownError as SaveOutcomeUnknownError,
    SinkClosedError as SinkClosedError,
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
from ._export import ExportSummary as ExportSummary, export_run as export_run
from ._extras import MissingExtraError as MissingExtraError
from ._groups import Summary as Summary
from ._history import (
    CheckpointView as CheckpointView,
    SessionView as SessionView,
    read_history as read_history,
    read_sessions as read_sessions,
)
from ._http_retries import http_retries as http_retries
from ._import import import_run as import_run
from ._listed import Listed as Listed
from ._log import guard_loggers as _guard_loggers
from ._loops import run_batches as run_batches
from ._maintain import Maintenance as Maintenance, open_maintenance as open_maintenance
from ._open import open_run as open_run
from ._partial import read_arrays as read_arrays
from ._phase import Phase as Phase
from ._progress import FailedAttempt as FailedAttempt, Pin as Pin, Progress as Progress
from ._records import (
    CheckpointResult as CheckpointResult,
    ErrorInfo as ErrorInfo,
    Output as Output,
    Status as Status,
)
from ._registry import TokenRegistry as TokenRegistry
from ._retention import Retention as Retention
from ._retry import (
    Again as Again,
    GiveUp as GiveUp,
    RetryRule as RetryRule,
    RetryTable as RetryTable,
    Then as Then,
)
from ._run import Run as Run
from ._session import Found as Found
from ._snapshots import Snapshots as Snapshots
from ._statistics import (
    ArrayStatistics as ArrayStatistics,
    RunStatistics as RunStatistics,
    StateStatistics as StateStatistics,
    Stopping as Stopping,
    StreamStatistics as StreamStatistics,
    Waiting as Waiting,
)
from ._stream import Stream as Stream
from ._token import CheckpointToken as CheckpointToken, TokenState as TokenState
from ._tracing import (
    TaskTracer as TaskTracer,
    trace_batches as trace_batches,
    trace_context as trace_context,
    trace_tasks as trace_tasks,
)
from ._walk import Batches as Batches
from .state import Frontier as Frontier, StateChangedError as StateChangedError

_guard_loggers()

__version__: str


def __getattr__(name: str) -> str:
    """The version that is installed; it is read when it is asked for, since that takes a while."""
    if name != "__version__":
        raise AttributeError(f"module 'trio_ckpt' has no attribute {name!r}")
    from importlib.metadata import version

    return version("trio-ckpt")


__all__ = [
    "Again",
    "ArchiveError",
    "ArrayStatistics",
    "Batch",
    "BatchCancelledError",
    "BatchFailedError",
    "BatchWithdrawnError",
    "Batches",
    "CannotRedoError",
    "CheckpointCoordinator",
    "CheckpointFailedError",
    "CheckpointResult",
    "CheckpointToken",
    "CheckpointView",
    "Compacted",
    "ConfigChangedError",
    "Drift",
    "DriftProblem",
    "DuplicateCheckpointError",
    "ErrorInfo",
    "ExportSummary",
    "FailedAttempt",
    "ForkedProcessError",
    "Found",
    "Frontier",
    "GiveUp",
    "Listed",
    "Maintenance",
    "MissingExtraError",
    "NeverAwaitedError",
    "NoThreadError",
    "NotEncodableError",
    "Output",
    "OutputClaimedError",
    "OutputError",
    "OutputExistsError",
    "OutputInvalidError",
    "OutputsMissingError",
    "Phase",
    "Pin",
    "Progress",
    "Retention",
    "RetryRule",
    "RetryTable",
    "Run",
    "RunLockedError",
    "RunStatistics",
    "RunStoppedError",
    "SaveOutcomeUnknownError",
    "SessionView",
    "SinkClosedError",
    "Snapshots",
    "SourceChangedError",
    "StateChangedError",
    "StateStatistics",
    "Status",
    "Stopping",
    "StoreConflictError",
    "StoreDamagedError",
    "StoreError",
    "StoreVersionError",
    "Stream",
    "StreamBusyError",
    "StreamEndedError",
    "StreamFailedError",
    "StreamStatistics",
    "StreamsStillOpenError",
    "Summary",
    "TaskTracer",
    "Then",
    "TokenNeverSettledError",
    "TokenRegistry",
    "TokenState",
    "TrioCkptError",
    "UnknownRunError",
    "UnknownStreamError",
    "Waiting",
    "__version__",
    "export_run",
    "find_drift",
    "http_retries",
    "import_run",
    "open_maintenance",
    "open_run",
    "read_arrays",
    "read_history",
    "read_sessions",
    "run_batches",
    "trace_batches",
    "trace_context",
    "trace_tasks",
]
