"""What a shell and a notebook show of an object: a line, and a small table."""

from __future__ import annotations

from collections.abc import Iterable

from .text import printable


class Shown:
    """An object that says what it is where a shell, a notebook or a log shows it.

    Neither form has what a program may keep secret, such as items, cursors, states, metadata and
    configurations.  Both cost the same for any number of batches, and neither waits.
    """

    __slots__ = ()

    def _shown(self) -> Iterable[tuple[str, str]]:
        """Names and texts, the name of the object first; a text that is empty is left out."""
        raise NotImplementedError

    def __repr__(self) -> str:
        (_, name), *rest = self._shown()
        texts = [f"{type(self).__name__} {name}".rstrip()]
        texts += [f"{what} {text}" for what, text in rest if text]
        return printable(f"<{'; '.join(texts)}>")

    def _repr_html_(self) -> str:
        """The table that Jupyter shows; every text is escaped."""
        from html import escape  # few programs are notebooks

        rows = [
            f'<tr><th style="text-align: left">{escape(what)}</th>'
            f'<td style="text-align: left">{escape(printable(text))}</td></tr>'
            for what, text in self._shown()
            if text
        ]
        return f"<table>{''.join(rows)}</table>"
