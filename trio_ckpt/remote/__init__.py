"""Work on many machines: a foreman, its workers, its clients.

The foreman keeps jobs, results and checkpoints in a store, workers run named functions, and a
worker uses the foreman as its store.  `trio_ckpt.engines.map_tasks` runs all of it on one machine.

Sockets need trio-websocket (``trio-ckpt[remote]``), imported when the first one is opened; reading
jobs from a store does not need it.
"""

from .._util.network import UnsafeBindingError as UnsafeBindingError, new_secret as new_secret
from ._client import (
    Client as Client,
    ItemResult as ItemResult,
    Results as Results,
    connect as connect,
)
from ._foreman.foreman import Foreman as Foreman
from ._foreman.job_reader import (
    list_jobs as list_jobs,
    read_job as read_job,
    read_task as read_task,
)
from ._foreman.job_views import (
    STATUSES as STATUSES,
    JobView as JobView,
    LiveTask as LiveTask,
    TaskStatus as TaskStatus,
    TaskView as TaskView,
)
from ._foreman.serve import serve_foreman as serve_foreman
from ._foreman.task_checkpoints import Delta as Delta, SavedStates as SavedStates
from ._wire.errors import (
    ConnectionLostError as ConnectionLostError,
    HandshakeRefusedError as HandshakeRefusedError,
    JobCancelledError as JobCancelledError,
    JobFailedError as JobFailedError,
    JobRefusedError as JobRefusedError,
    LocalProtocolError as LocalProtocolError,
    NotAllowedError as NotAllowedError,
    ProtocolError as ProtocolError,
    RemoteError as RemoteError,
    RemoteProtocolError as RemoteProtocolError,
    TaskFailedError as TaskFailedError,
    TaskLostError as TaskLostError,
    UnknownJobError as UnknownJobError,
)
from ._worker.work import Work as Work, task as task
from ._worker.worker import run_worker as run_worker
