"""Bytes to lines.

Two conventions of what ends a line:

==========  =========================================================================================================
newlines    a line ends at
==========  =========================================================================================================
``"any"``   LF, CR, or CRLF counted as one. A CR ends its line at once, without a look at what follows; an LF that comes
            next, in this chunk or a later one, belongs to that CR and ends nothing.
``"lf"``    LF alone. A CR is a byte of the line like any other.
==========  =========================================================================================================

Form feeds, NEL, U+2028 and the other ends of ``str.splitlines`` end nothing here: no wire format uses them, and JSON
strings carry them raw.

The module does not know what a line means, nor its encoding.
"""

from __future__ import annotations

from typing import Literal

from penstock.errors import LimitExceeded

CR = 0x0D  # as numbers: `b"\r" in data` is tried as a number first, and takes three times as long
LF = 0x0A


def unify(data: bytes, after_cr: bool) -> tuple[bytes, bool]:
    """Turn each CR, LF and CRLF of a chunk into one LF.

    Args:
        data: A chunk, not empty.
        after_cr: Whether the chunk before ended in a CR, so that a leading LF was already accounted for.
    Returns:
        The chunk with LF alone (it may have become empty), and whether it ended in a CR: ``after_cr`` of the next.
    """
    if after_cr and data.startswith(b"\n"):
        data = data[1:]
    if CR not in data:
        return data, False
    ends_in_cr = data.endswith(b"\r")
    data = data.replace(b"\r\n", b"\n")
    return (data.replace(b"\r", b"\n") if CR in data else data), ends_in_cr


class Decoder:
    """Cuts a body into lines, without their terminators.

    Args:
        max_line_bytes: The longest line that is accepted, terminator not counted; a security limit [bytes].
        newlines: "any" for CR, LF and CRLF; "lf" for LF alone.
    """

    def __init__(self, *, max_line_bytes: int = 1 << 20, newlines: Literal["any", "lf"] = "any") -> None:
        if newlines not in ("any", "lf"):
            raise ValueError(f'newlines is "any" or "lf", not {newlines!r}')
        self._limit = max_line_bytes
        self._unify = newlines == "any"
        self._after_cr = False
        self._tail = bytearray()  # the unfinished line; holds no newline, so that only new bytes are ever searched
        self._fault: LimitExceeded | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Absorb bytes; return every line they complete.

        Args:
            data: The next slice of the body, any size [bytes]; b"" is a no-op, not the end.
        Returns:
            Lines in order, empty ones included; the unfinished line stays buffered.
        Raises:
            LimitExceeded: A line outgrew max_line_bytes; the decoder is unusable after.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        if not data:
            return []
        if self._unify:
            data, self._after_cr = unify(data, self._after_cr)
        if LF not in data:
            self._tail += data
            return self._bounded([])
        lines = data.split(b"\n")
        if self._tail:
            self._tail += lines[0]
            lines[0] = bytes(self._tail)
        self._tail = bytearray(lines.pop())
        return self._bounded(lines)

    def close(self) -> list[bytes]:
        """End the body; return its last line if it had no terminator.

        Returns:
            The unfinished line, or nothing when the body ended in a newline (or was empty).
        Raises:
            LimitExceeded: The fault that an earlier feed found after it had completed lines.
        """
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        last = [bytes(self._tail)] if self._tail else []
        self._tail = bytearray()
        return last

    def _bounded(self, lines: list[bytes]) -> list[bytes]:
        """Check the limit on new lines and on the unfinished one; keep the lines before a fault."""
        limit = self._limit
        for index, line in enumerate(lines):
            if len(line) > limit:
                return self._fail(lines[:index])
        if len(self._tail) > limit:
            return self._fail(lines)
        return lines

    def _fail(self, complete: list[bytes]) -> list[bytes]:
        self._tail = bytearray()
        self._fault = LimitExceeded(
            f"a line is longer than {self._limit} bytes; raise max_line_bytes if such lines are expected",
            limit="max_line_bytes",
        )
        if not complete:
            raise self._fault
        return complete
