"""Form data to `multipart/form-data`, framed so that its length is known before a byte is sent.

::

    --B CRLF  headers CRLF  CRLF  body CRLF        each part
    --B-- CRLF                                     the end

`Form` gives the framing and never the files: a caller writes ``form.head(0)``, the first part's bytes if it is a
`File`, ``form.head(1)`` … and ``form.tail``. The CRLF that ends a body belongs to whatever follows it, so the bytes of
a file go out exactly as they are.

What is escaped is what browsers escape, and no more, because receivers undo just that:

============  ========================  ==================================  ===========
in            CR, LF, CRLF              a character the charset lacks       ``"``
============  ========================  ==================================  ===========
a name        ``%0D%0A`` each           ``&#N;``                            ``%22``
a filename    CR ``%0D``, LF ``%0A``    ``&#N;``                            ``%22``
a str value   CRLF each                 ``&#N;``                            as it is
a bytes value as they are               as they are                         as they are
============  ========================  ==================================  ===========

Unescaped, a quote or a newline in a name would let whoever chose it write headers and parts of their own.

The module does not choose the boundary: it has no randomness, and a boundary must be one that no part can guess.

Source:
    WHATWG HTML, multipart/form-data encoding algorithm; RFC 7578; RFC 2046 §5.1.1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_BOUNDARY = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? ")
_NEEDS_QUOTES = frozenset("(),/:=? ")  # of those, the ones that a bare parameter value cannot hold


@dataclass(frozen=True, slots=True)
class Field:
    """A part that is a plain value.

    Attributes:
        name: The field's name.
        value: Text, encoded in the form's charset with its newlines made CRLF; or bytes, sent as they are.
    """

    name: str
    value: str | bytes


@dataclass(frozen=True, slots=True)
class File:
    """A part that is a file, whose bytes the caller writes.

    Attributes:
        name: The field's name.
        filename: What the receiver is told; escaped, but not otherwise made safe.
        content_type: The file's media type.
        length: How many bytes will be written; None where that is not known beforehand.
    """

    name: str
    filename: str
    content_type: str = "application/octet-stream"
    length: int | None = None


class Form:
    """The framing of one form.

    Args:
        parts: Its fields and files, in the order they are sent.
        boundary: What separates them; 1 to 70 characters that must not occur in any part behind a newline and ``--``.
        charset: The encoding of names, filenames and str values; one in which ASCII is ASCII.

    Attributes:
        parts: The parts, as a tuple.
        content_type: The value for the request's Content-Type field.
        content_length: The bytes of the whole body; None when a file's length is not known.
        tail: What ends the body.

    Raises:
        ValueError: A boundary that RFC 2046 forbids or that a field's value contains; CR, LF, NUL or a non-ASCII
            character in a content type; a negative length; a charset that is unknown or that is no superset of ASCII.
    """

    def __init__(self, parts: Sequence[Field | File], *, boundary: str, charset: str = "utf-8") -> None:
        _check_boundary(boundary)
        _check_charset(charset)
        self.parts = tuple(parts)
        quotes = '"' if _NEEDS_QUOTES.intersection(boundary) else ""
        self.content_type = f"multipart/form-data; boundary={quotes}{boundary}{quotes}"
        delimiter = b"--" + boundary.encode()
        self._heads = [
            (b"\r\n" if index else b"") + delimiter + b"\r\n" + _part(part, delimiter, charset)
            for index, part in enumerate(self.parts)
        ]
        self.tail = (b"\r\n" if self.parts else b"") + delimiter + b"--\r\n"
        self.content_length = self._length()

    def head(self, index: int) -> bytes:
        """What stands before the bytes of part `index`: the end of the part before, the delimiter and the headers.

        For a `Field` its value is included, so there is nothing more to write for it.
        """
        return self._heads[index]

    def _length(self) -> int | None:
        total = sum(map(len, self._heads)) + len(self.tail)
        for part in self.parts:
            if isinstance(part, File):
                if part.length is None:
                    return None
                total += part.length
        return total


def _part(part: Field | File, delimiter: bytes, charset: str) -> bytes:
    """The headers of a part, the blank line behind them, and the value if it is a field."""
    name = _one_newline(part.name).replace("\n", "%0D%0A").replace('"', "%22")
    head = b'Content-Disposition: form-data; name="' + _quotable(name, charset, "name") + b'"'
    if isinstance(part, Field):
        value = part.value
        if isinstance(value, str):
            value = _encode(_one_newline(value).replace("\n", "\r\n"), charset)
        if b"\n" + delimiter in b"\n" + value:
            raise ValueError(f"the value of field {part.name!r} contains the boundary; choose another boundary")
        return head + b"\r\n\r\n" + value
    if part.length is not None and part.length < 0:
        raise ValueError(f"the length of file {part.filename!r} is {part.length}; it cannot be negative")
    content_type = part.content_type
    if not content_type.isascii() or any(character in content_type for character in "\r\n\0"):
        raise ValueError(f"the content type of file {part.filename!r} has CR, LF, NUL or non-ASCII: {content_type!r}")
    filename = part.filename.replace("\n", "%0A").replace("\r", "%0D").replace('"', "%22")
    head += b'; filename="' + _quotable(filename, charset, "filename") + b'"'
    return head + b"\r\nContent-Type: " + content_type.encode() + b"\r\n\r\n"


def _one_newline(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encode(text: str, charset: str) -> bytes:
    """Encode; a character that the charset lacks becomes a character reference, half a surrogate pair U+FFFD."""
    try:
        return text.encode(charset)
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text.encode(charset, "xmlcharrefreplace")


def _quotable(text: str, charset: str, what: str) -> bytes:
    """Encode what was escaped, and make sure that the charset did not bring back what the escaping took away."""
    encoded = _encode(text, charset)
    if any(byte in encoded for byte in b'"\r\n'):  # a shifted charset (ISO-2022, UTF-7) may use these bytes as it likes
        raise ValueError(f"the {what} {text!r} cannot be quoted in {charset}; use utf-8")
    return encoded


def _check_boundary(boundary: str) -> None:
    if not 1 <= len(boundary) <= 70:
        raise ValueError(f"a boundary has 1 to 70 characters, not {len(boundary)}")
    if not _BOUNDARY.issuperset(boundary):
        raise ValueError(f"a boundary has letters, digits and '()+_,-./:=? only: {boundary!r}")
    if boundary.endswith(" "):
        raise ValueError(f"a boundary cannot end in a space: {boundary!r}")


def _check_charset(charset: str) -> None:
    ascii_ = "".join(map(chr, range(128)))
    try:
        encoded = ascii_.encode(charset)
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"the charset {charset!r} is unknown, or cannot encode ASCII") from error
    if encoded != ascii_.encode():
        raise ValueError(f"the charset {charset!r} does not encode ASCII as ASCII; headers need one that does")
