"""Durable files: what batches leave behind.

Theory of operation
===================

A checkpoint may only say that a file is there when the file survives a power cut, so
every function here returns after the fsyncs that make it so: of the file, of the folder
that has its name, and of each folder whose own name may be new.

* A whole file is written beside its goal and renamed over it: at any instant the name
  leads to the old content or to the new one.
* An append file has a confirmed length.  What lies behind it is of no account: it is cut
  off when the file is opened, and before the next append.
* After a failed fsync the kernel may call the lost pages clean and let the next fsync
  succeed (Rebello et al., "Can Applications Recover from fsync Failures?", 2020), so
  nothing is synced a second time: that file or folder is refused until the next session.
* Links below the root are never followed: every folder on the way is opened by its own
  name in the folder before, `openat(2)` with ``O_NOFOLLOW``.

All of it blocks: call it through the seam for blocking calls.  Whatever the operating
system is asked for goes through `System`, so that a test can put faults behind it.
"""

from __future__ import annotations

from .._journal.record import Output as Output
from ._append import AppendFile as AppendFile, SinkTooShortError as SinkTooShortError
from ._dir import Archived as Archived, OutputDir as OutputDir, Verify as Verify
from ._names import (
    ARCHIVE as ARCHIVE,
    LINES_DIGEST_BYTES as LINES_DIGEST_BYTES,
    AnyPath as AnyPath,
    OutputPathError as OutputPathError,
    encode_lines as encode_lines,
    lines_digest as lines_digest,
    relative_path as relative_path,
)
from ._new import NewFile as NewFile
from ._system import System as System, SystemPath as SystemPath
from ._tail import find_lines_damage as find_lines_damage, keep_tail as keep_tail
from ._validate import (
    RawCheck as RawCheck,
    Validate as Validate,
    Validator as Validator,
    check_found as check_found,
    check_outputs as check_outputs,
)
