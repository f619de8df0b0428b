"""Resumable work for trio programs.

The floor plan; a file imports only from floors below its own:

    L5  _loops      run_batches
    L4  _batch      one attempt                       _stop       stopping in good order
        _gate       the law of order                  _stream     loops over batches
        _verify     outputs on resume                 _resume     opening a stream
        _session    what was found    _run, _open   open_run
    L3  _coordinator  tokens without I/O              _saver      group commit
    L2  _registry   pending tokens                    _config, _retry, _source, _statistics
        state/      codecs, the frontier              stores/     bytes in, bytes out
    L1  abc         every contract                    _token      the token's table
        outputs     durable files
    L0  _errors, _ranges, _totals, _values, _records, _progress, _threads
"""

from ._batch import Batch as Batch
from ._coordinator import CheckpointCoordinator as CheckpointCoordinator
from ._errors import (
    BatchCancelledError as BatchCancelledError,
    BatchFailedError as BatchFailedError,
    BatchWithdrawnError as BatchWithdrawnError,
    CannotRedoError as CannotRedoError,
    CheckpointFailedError as CheckpointFailedError,
    ConfigChangedError as ConfigChangedError,
    DuplicateCheckpointError as DuplicateCheckpointError,
    NotEncodableError as NotEncodableError,
    OutputClaimedError as OutputClaimedError,
    OutputError as OutputError,
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
)
from ._loops import run_batches as run_batches
from ._open import open_run as open_run
from ._progress import FailedAttempt as FailedAttempt, Progress as Progress
from ._records import (
    CheckpointResult as CheckpointResult,
    ErrorInfo as ErrorInfo,
    Output as Output,
    Status as Status,
)
from ._registry import TokenRegistry as TokenRegistry
from ._retry import RetryRule as RetryRule, RetryTable as RetryTable, Then as Then
from ._run import Run as Run
from ._session import Found as Found
from ._statistics import StreamStatistics as StreamStatistics
from ._stream import Batches as Batches, Stream as Stream
from ._token import CheckpointToken as CheckpointToken, TokenState as TokenState
from .state import Frontier as Frontier
