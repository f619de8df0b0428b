"""Durable files that batches produce.

This room may not know when a file is written for which batch, nor how its record is saved.

Theory of operation
===================

A checkpoint may state that a file exists only when the file survives a power cut, so
every function here returns after the fsyncs that ensure it: of the file, of the folder
that has its name, and of each folder whose own name may be new.

* A whole file is written beside its goal and renamed over it: at any instant the name
  denotes the old content or the new one.
* An append file has a confirmed length.  Bytes after it do not count: they are cut
  off when the file is opened, and before the next append.
* After a failed fsync the kernel may mark the lost pages clean and let the next fsync
  succeed (Rebello et al., "Can Applications Recover from fsync Failures?", 2020), so
  no fsync is repeated: that file or folder is refused until the next session.
* Links below the root are never followed: every folder on the way is opened by its own
  name in the folder above it, `openat(2)` with ``O_NOFOLLOW``.

Every function blocks: call it through the seam for blocking calls.  All calls of the operating
system go through `System`, so that a test can inject faults below it.
"""

import typing

from .._util.lazy import lazy_names as _lazy_names

if typing.TYPE_CHECKING:
    from .._journal.record import Output as Output
    from ._append import (
        LINES_DIGEST_BYTES as LINES_DIGEST_BYTES,
        AppendFile as AppendFile,
        SinkTooShortError as SinkTooShortError,
        encode_lines as encode_lines,
        find_lines_damage as find_lines_damage,
        keep_tail as keep_tail,
        lines_digest as lines_digest,
    )
    from ._contract import (
        Archived as Archived,
        FileStatus as FileStatus,
        Outputs as Outputs,
        Verify as Verify,
        Writing as Writing,
    )
    from ._dir import OutputDir as OutputDir
    from ._members import (
        Compression as Compression,
        compression_of as compression_of,
        load_compressor as load_compressor,
    )
    from ._place import (
        is_url as is_url,
        open_existing as open_existing,
        open_outputs as open_outputs,
        place_below as place_below,
    )
    from ._system import System as System, SystemPath as SystemPath
    from ._tree import (
        ARCHIVE as ARCHIVE,
        AnyPath as AnyPath,
        NewFile as NewFile,
        OutputPathError as OutputPathError,
        relative_path as relative_path,
    )
    from ._validate import (
        RawCheck as RawCheck,
        Validate as Validate,
        Validator as Validator,
        check_found as check_found,
        check_outputs as check_outputs,
    )
else:  # few programs validate their outputs
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_append": "LINES_DIGEST_BYTES AppendFile SinkTooShortError encode_lines "
            "find_lines_damage keep_tail lines_digest",
            "_contract": "Archived FileStatus Output Outputs Verify Writing",
            "_dir": "OutputDir",
            "_members": "Compression compression_of load_compressor",
            "_place": "is_url open_existing open_outputs place_below",
            "_system": "System SystemPath",
            "_tree": "ARCHIVE AnyPath NewFile OutputPathError relative_path",
            "_validate": "RawCheck Validate Validator check_found check_outputs",
        },
    )
