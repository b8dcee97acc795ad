"""Header fields: which go on, what a filename in them is, what a media type says, and which are refused.

A raw header list is a ``list[tuple[bytes, bytes]]``, names in any case, order and repetitions kept.

The functions that read a value from outside (`filename`, `media_type`) never raise and look at no more than
`MAX_VALUE` of it; those that write one (`check_header`) raise ValueError rather than let it be split.

The module does not know which fields a relay adds, nor anything of framing.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that concern one connection and never go on (RFC 9110 §7.6.1), in lower case."""

NEVER_NAMED = frozenset(
    {
        # framing and meaning of the body
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"range",
        # routing
        b"host",
        b"location",
        # who asks
        b"authorization",
        b"cookie",
        b"origin",
        b"set-cookie",
        # who asked whom for whom
        b"forwarded",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
        # caching and identity of streams and requests
        b"cache-control",
        b"etag",
        b"idempotency-key",
        b"if-match",
        b"if-none-match",
        b"if-range",
        b"last-event-id",
        b"vary",
    }
)
"""Fields that a Connection field cannot remove, in lower case: they are meant for the last recipient, and naming them
is an attack on whoever behind us relies on them."""

MAX_VALUE = 8192
"""How much of a value is looked at, in characters; names and media types that need more are not in earnest."""

MAX_FILENAME_BYTES = 255
"""The longest name that common filesystems take, in UTF-8."""

_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_NDJSON = frozenset(
    f"application/{name}" for name in ("x-ndjson", "ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines")
)
_FORM_ESCAPES = (("%22", '"'), ("%0D", "\r"), ("%0d", "\r"), ("%0A", "\n"), ("%0a", "\n"))
_MAX_SUFFIX_BYTES = 32
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [port + digit for port in ("com", "lpt") for digit in "0123456789¹²³"]
)
_NOT_IN_NAMES = frozenset('<>:"|?*')  # Windows refuses them; a colon would also name an alternate data stream
_INVISIBLE = frozenset(
    (*range(0x20), *range(0x7F, 0xA0), *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
)  # controls, line separators and the marks that turn text around ("exe.txt" that is a "txt.exe")


def end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields that go on to the next hop.

    Dropped are HOP_BY_HOP and the fields that a Connection field names, except NEVER_NAMED: ``Connection: cookie`` or
    ``Connection: content-length`` would otherwise let a caller strip from a request what was put there to check it.

    Args:
        headers: The fields as they came; the list is not changed.
    Returns:
        The rest, in order, with their names and values untouched.
    Source:
        RFC 9110 §7.6.1
    """
    dropped = set(HOP_BY_HOP)
    for name, value in headers:
        if name.lower() == b"connection":
            dropped.update(option.strip(b" \t") for option in value.lower().split(b","))
    dropped -= NEVER_NAMED
    return [field for field in headers if field[0].lower() not in dropped]


def check_header(name: str | bytes, value: str | bytes) -> None:
    """Refuse a field that would not arrive as the one field it is.

    Raises:
        ValueError: A name that is not a token, or CR, LF or NUL in the value. The message has the name and not the
            value, which may be a secret.
    Source:
        RFC 9110 §5.1, §5.5
    """
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if not text or not _TOKEN.issuperset(text):
        raise ValueError(f"{text[:60]!r} is not a header name: letters, digits and !#$%&'*+-.^_`|~ only, at least one")
    shown = value.decode("latin-1") if isinstance(value, bytes) else value
    for character, what in (("\r", "CR"), ("\n", "LF"), ("\0", "NUL")):
        if character in shown:
            raise ValueError(f"{what} at character {shown.index(character)} of the value of header {text!r}")


class MediaType(NamedTuple):
    """A media type, its names in lower case. All is empty where the value was none.

    Attributes:
        type: What stands before the slash.
        subtype: What stands behind it.
        params: The parameters by name; of a repeated one, the first.
    """

    type: str
    subtype: str
    params: dict[str, str]

    @property
    def essence(self) -> str:
        """Type and subtype, ``"text/event-stream"``; "" where the value was no media type."""
        return f"{self.type}/{self.subtype}" if self.type else ""

    @property
    def charset(self) -> str | None:
        """The charset parameter in lower case; None if there is none."""
        return self.params.get("charset", "").lower() or None


def media_type(value: str | bytes | None) -> MediaType:
    """Read a Content-Type value.

    Case, spaces and stray semicolons do not matter. What has no ``type/subtype`` made of tokens gives an empty one.
    """
    first, params = _parameters(_text(value))
    type_, _, subtype = first.partition("/")
    if not type_ or not subtype or not _TOKEN.issuperset(type_) or not _TOKEN.issuperset(subtype):
        return MediaType("", "", {})
    return MediaType(type_.lower(), subtype.lower(), dict(reversed(params)))


def is_event_stream(value: str | bytes | None) -> bool:
    """Whether a Content-Type says server-sent events. Its charset does not matter: they are UTF-8 always."""
    return media_type(value).essence == "text/event-stream"


def is_ndjson(value: str | bytes | None) -> bool:
    """Whether a Content-Type says one JSON value per line: ndjson, jsonl and jsonlines, with and without "x-".

    Not ``application/json-seq``, whose records begin with a 1E byte, nor ``application/json``.
    """
    return media_type(value).essence in _NDJSON


def filename(content_disposition: str | bytes | None) -> str | None:
    """The name that a Content-Disposition gives, made safe to use as a file's name.

    ``filename*`` wins where it can be read (UTF-8 or ISO-8859-1), else ``filename``. In the latter, a backslash escapes
    a quote or a backslash and is otherwise a backslash, since browsers write paths of Windows raw; ``%22``, ``%0D`` and
    ``%0A`` are undone, since browsers write them in forms; raw bytes are UTF-8 if they can be, else ISO-8859-1.

    Returns:
        The name by the rules of `safe_filename`; None when there is none, or nothing of it remains.
    Source:
        RFC 6266, RFC 8187
    """
    first, params = _parameters(_text(content_disposition))
    if "=" in first:  # "filename=x" without a disposition type: wrong, and frequent
        params = _parameters(";" + _text(content_disposition))[1]
    extended = next((text for name, text in params if name == "filename*"), None)
    plain = next((text for name, text in params if name == "filename"), None)
    name = _extended_value(extended) if extended else None
    if name is None and plain is not None:
        for escape, character in _FORM_ESCAPES:
            plain = plain.replace(escape, character)
        name = plain
    return None if name is None else safe_filename(name)


def safe_filename(name: str) -> str | None:
    r"""A name from outside, reduced to one that can only be a file in the directory it is joined to.

    Of a name longer than MAX_VALUE only the end is looked at. Then, in this order:

    1. Controls, line separators and marks of direction are removed; half a surrogate pair becomes ``_``.
    2. Only what follows the last ``/`` or ``\`` stays, and of that, what follows a drive's ``C:``.
    3. Each of ``<>:"|?*`` becomes ``_``.
    4. Dots and white space are taken off both ends: no ``..``, no hidden file, nothing that Windows would trim itself.
    5. A device of Windows (``CON``, ``nul.txt``) gets a ``_`` before it.
    6. More than MAX_FILENAME_BYTES are cut, from the stem where there is a short suffix.

    Returns:
        The name, such that this function leaves it as it is; None when nothing remains.
    """
    name = name[-MAX_VALUE:]
    name = "".join("_" if "\ud800" <= c <= "\udfff" else c for c in name if ord(c) not in _INVISIBLE)
    name = name.replace("\\", "/").rpartition("/")[2]
    if name[1:2] == ":" and name[0].isascii() and name[0].isalpha():
        name = name[2:]
    name = _trim("".join("_" if c in _NOT_IN_NAMES else c for c in name))
    if name.partition(".")[0].rstrip().lower() in _RESERVED:
        name = "_" + name
    return _shorten(name) or None


def attachment(filename: str) -> str:
    """A Content-Disposition value that makes a browser save the body under this name.

    The name is passed through `safe_filename` first, so nothing in it can end the quotes or the header; where nothing
    remains the value is ``attachment`` alone. A name that is not plain ASCII is given twice: as ``filename*``, and
    with ``_`` for what is not for readers that do not know it.
    """
    name = safe_filename(filename)
    if name is None:
        return "attachment"
    # "%" too is kept out of the plain form: some readers decode it there, some do not.
    plain = "".join(c if c.isascii() and c != "%" else "_" for c in name)
    if plain == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='!#$&+^`|')}"


def _text(value: str | bytes | None) -> str:
    """A value as text: UTF-8 if it can be, else ISO-8859-1, also where the latter was already assumed for us."""
    if value is None:
        return ""
    value = value[:MAX_VALUE]
    if isinstance(value, str):
        try:
            raw = value.encode("latin-1")
        except UnicodeEncodeError:
            return value
    else:
        raw = value
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _parameters(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Split ``first; name=value; name="value"``: the names in lower case, the values without their quotes.

    Semicolons inside quotes do not separate, a missing closing quote is supplied, empty parameters are skipped.
    """
    first, _, _ = text.partition(";")
    at = len(first)
    params: list[tuple[str, str]] = []
    while at < len(text):
        at += 1  # the semicolon
        ends = [end for end in (text.find(";", at), text.find("=", at)) if end >= 0]
        end = min(ends, default=len(text))
        name = text[at:end].strip(" \t").lower()
        at = end
        if not text.startswith("=", at):
            continue
        at += 1
        while text[at : at + 1] in (" ", "\t"):
            at += 1
        if text.startswith('"', at):
            value, at = _quoted(text, at + 1)
            at = _or_end(text, text.find(";", at))
        else:
            end = _or_end(text, text.find(";", at))
            value = text[at:end].strip(" \t")
            at = end
        if name:
            params.append((name, value))
    return first.strip(" \t"), params


def _or_end(text: str, found: int) -> int:
    return found if found >= 0 else len(text)


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Read a quoted string from behind its opening quote; return it and where it ended."""
    characters: list[str] = []
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\"):
            at += 1
        characters.append(text[at])
        at += 1
    return "".join(characters), at + 1


def _extended_value(text: str) -> str | None:
    """Decode ``charset'language'percent-encoded``; None where the charset or the bytes are not what they should be."""
    charset, quote1, rest = text.partition("'")
    _, quote2, encoded = rest.partition("'")
    if not quote1 or not quote2 or charset.lower() not in ("utf-8", "iso-8859-1") or not encoded.isascii():
        return None
    try:
        return unquote_to_bytes(encoded).decode(charset.lower()) or None
    except UnicodeDecodeError:
        return None


def _trim(name: str) -> str:
    """Take dots and white space off both ends, however they alternate."""
    start, end = 0, len(name)
    while start < end and (name[start] == "." or name[start].isspace()):
        start += 1
    while end > start and (name[end - 1] == "." or name[end - 1].isspace()):
        end -= 1
    return name[start:end]


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_FILENAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    tail = (dot + suffix).encode()
    if not stem or len(tail) > _MAX_SUFFIX_BYTES:
        stem, tail = name, b""
    kept = stem.encode()[: MAX_FILENAME_BYTES - len(tail)].decode("utf-8", "ignore")
    return _trim(kept + tail.decode())
