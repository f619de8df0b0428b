"""What a body writes through its batch: output files, and pieces of append files."""

from __future__ import annotations

from typing import Any

from .._util.arguments import text as text_of
from .._util.plain import as_plain, canonical_json
from .._util.threads import Portal, from_any_thread
from .._util.uninterrupted import uninterrupted
from ..outputs import AnyPath, Compression, encode_lines
from .awaits import Calls, awaits_noted
from .batch_host import BatchHost
from .sink_writer import StagedPiece, bytes_of
from .staged import AttemptState, Staged


@uninterrupted
@awaits_noted
class BatchFiles:
    """The part of a `Batch` that writes files; all fields are those of the batch."""

    __slots__ = ()

    index: int
    attempt: int
    state: AttemptState
    _host: BatchHost[Any]
    _portal: Portal
    _staged: Staged
    _calls: Calls | None

    def _check_staging(self) -> None:
        if self.state in (AttemptState.SUBMITTED, AttemptState.OVER):
            raise RuntimeError(
                f"attempt {self.attempt} at batch {self.index} is over: no checkpoint would save "
                "what is staged now"
            )

    @from_any_thread
    def append_json(
        self,
        path: AnyPath,
        *records: Any,
        compress: Compression | None = None,
        rotate_bytes: int | None = None,
    ) -> None:
        """Stage JSON lines for an append file, as `append_bytes` does for bytes.

        Args:
            path: The append file, relative to the output folder of the stream.
            records: JSON-like values; each becomes a line.
            compress, rotate_bytes: As for `append_bytes`.

        Raises:
            NotEncodableError: a record is not JSON-like.
            OutputError, MissingExtraError, ValueError: as for `append_bytes`.

        Durability: none yet; the lines are durable when the batch is confirmed.
        """
        piece = StagedPiece(bytearray(encode_lines(records)), has_json=True)
        self._check_staging()
        self._host.files.stage_piece(self._staged.lines, path, piece, compress, rotate_bytes)

    @from_any_thread
    def append_bytes(
        self,
        path: AnyPath,
        data: bytes | bytearray | memoryview,
        *,
        compress: Compression | None = None,
        rotate_bytes: int | None = None,
        header: bytes | bytearray | memoryview = b"",
    ) -> None:
        """Stage bytes for an append file, which belongs to this stream.

        They are appended in one piece when the batch is saved: the file has the bytes of
        confirmed batches, each once.

        Args:
            path: The append file, relative to the output folder of the stream.
            data: What is appended.
            compress: ``"gzip"`` or ``"zstd"``: the bytes of a batch are one member or frame, so
                the file can be read by the usual tools at any moment.  ``"zstd"`` needs the
                extra `zstd`.
            rotate_bytes: When a part of the file has so many bytes, the next piece goes to the
                next one; ``{part}`` in the path becomes its number, from 00000 on.
            header: What the file begins with, and each of its parts: written before `data` where
                the file has nothing yet.

        Raises:
            OutputError: the path is bad, or another stream appends to the file.
            MissingExtraError: what compresses is not installed.
            ValueError: the session writes it in another way, or as a part of another path, or the
                path lacks ``{part}``.

        Durability: none yet; the bytes are durable when the batch is confirmed.
        """
        piece = StagedPiece(bytearray(bytes_of(data)), bytes_of(header, "header"))
        self._check_staging()
        self._host.files.stage_piece(self._staged.lines, path, piece, compress, rotate_bytes)

    async def write_bytes(self, path: AnyPath, data: bytes | bytearray | memoryview) -> str:
        """Write an output file, whole or not at all.

        Args:
            path: Relative to the output folder of the stream; missing folders are created.
            data: The content.

        Returns:
            The path relative to that folder.

        Raises:
            OutputClaimedError: another batch has confirmed a file of that name.
            OutputError: it cannot be written; the old file is unchanged.

        Durability: when this returns the file and its name survive power loss.
        Cancellation: a write that has begun is waited for.
        """
        self._check_staging()
        files = self._host.files
        output = await files.write(path, bytes_of(data), self.index)
        self._check_staging()
        self._staged.outputs[output.path] = output
        return files.path(output.path)

    async def write_text(self, path: AnyPath, text: str) -> str:
        """Write a text as an output file in UTF-8, whole or not at all.

        Args:
            path: Relative to the output folder of the stream; missing folders are created.
            text: The content.

        Returns:
            The path relative to that folder.

        Raises:
            OutputClaimedError: another batch has confirmed a file of that name.
            OutputError: it cannot be written; the old file is unchanged.

        Durability: when this returns the file and its name survive power loss.
        Cancellation: a write that has begun is waited for.
        """
        return await self.write_bytes(path, text_of("text", text, is_empty_allowed=True).encode())

    async def write_json(self, path: AnyPath, value: Any) -> str:
        """Write a value as an output file in canonical JSON, whole or not at all.

        Args:
            path: Relative to the output folder of the stream; missing folders are created.
            value: A JSON-like value.

        Returns:
            The path relative to that folder.

        Raises:
            NotEncodableError: the value is not JSON-like; the error names the bad leaf.
            OutputClaimedError: another batch has confirmed a file of that name.
            OutputError: it cannot be written; the old file is unchanged.

        Durability: when this returns the file and its name survive power loss.
        Cancellation: a write that has begun is waited for.
        """
        content = canonical_json(as_plain(value, "value")).encode() + b"\n"
        return await self.write_bytes(path, content)
