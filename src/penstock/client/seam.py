"""Where httpx2's names end and ours begin: its exceptions, and its idea of a URL.

Nothing above this file knows an exception of httpx2's, so another transport changes nothing above it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import httpx2

from penstock.client.settings import Timeout
from penstock.errors import (
    ConnectError,
    ConnectTimeout,
    DecodeError,
    InBandError,
    InvalidURL,
    LimitExceeded,
    PenstockError,
    ProtocolError,
    ReadError,
    ReadTimeout,
    StreamStalled,
    StreamTruncated,
    TransportError,
    WriteError,
    WriteTimeout,
)

Phase = Literal["request", "body"]

_NOT_IN_SCHEMES = frozenset("/?#")
_NOT_IN_HOSTS = frozenset(' \t\r\n%\\"<>^`{|}')
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def absolute_url(base: str, url: str) -> str:
    """Join a path to the base URL, and check that the result can be asked for.

    The path goes behind the base's path, and its query behind the base's query.

    Raises:
        InvalidURL: Not a URL, no host, or a scheme other than http and https.
    """
    scheme, mark, _ = url.partition("://")
    if not mark or not _NOT_IN_SCHEMES.isdisjoint(scheme):  # "/go?to=http://elsewhere" is a path
        if not base:
            raise InvalidURL(
                f"{shown(url)!r} is not a full URL: write it with http:// or https:// and a host", url=shown(url)
            )
        url = _joined(base, url)
    said = shown(url)
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise InvalidURL(f"{said!r} is not a URL ({error}): check its host and port", url=said) from None
    if not _NOT_IN_HOSTS.isdisjoint(_parts(url)[1].rpartition("@")[2]):
        raise InvalidURL(f"{said!r} is not a URL: its host holds a character that no host has", url=said)
    if parsed.scheme not in ("http", "https"):
        raise InvalidURL(f"{said!r}: the scheme {parsed.scheme!r} is not spoken here: use http or https", url=said)
    if not parsed.host:
        raise InvalidURL(f"{said!r} has no host: write it as http://HOST/PATH", url=said)
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidURL(f"{said!r}: the port must be from 1 to 65535", url=said)
    return url


def _joined(base: str, url: str) -> str:
    base, _, _ = base.partition("#")
    path, hash_mark, fragment = url.partition("#")
    path, _, query = path.partition("?")
    base, _, base_query = base.partition("?")
    if path:
        base = f"{base.rstrip('/')}/{path.lstrip('/')}"
    query = "&".join(filter(None, (base_query, query)))
    return f"{base}{query and '?'}{query}{hash_mark}{fragment}"


def origin_of(url: str) -> str:
    """Scheme, host and port, however they were written: what a breaker guards."""
    scheme, authority, _ = _parts(url.lower())
    host = authority.rpartition("@")[2]
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ''))}"


def shown(url: str) -> str:
    """The URL as it may stand in a message: without user name and password. For what is no URL too."""
    scheme, authority, rest = _parts(url)
    return f"{scheme}://{authority.rpartition('@')[2]}{rest}" if "@" in authority else url


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme, authority, and what follows it; cut, not parsed, since a message must be made of bad ones too."""
    scheme, _, rest = url.partition("://")
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    return scheme, rest[:end], rest[end:]


def translate(
    error: Exception, url: str, phase: Phase, *, received: int = 0, timeout: Timeout | None = None
) -> PenstockError:
    """Our error for one of httpx2's.

    Args:
        error: What httpx2 raised.
        url: Where to.
        phase: "request" until the response headers have come, "body" after.
        received: Body bytes that had come.
        timeout: What was waited for how long.
    """
    url = shown(url)
    if isinstance(error, PenstockError) and error.url is not None:
        return error
    if isinstance(error.__cause__, LimitExceeded):
        return located(error.__cause__, url)
    if isinstance(error, httpx2.TooManyRedirects):
        return ProtocolError(f"{url}: too many redirects", url=url)
    if isinstance(error, httpx2.DecodingError):
        return DecodeError(f"{url}: the body does not decode as its Content-Encoding says: {_why(error)}", url=url)
    if phase == "body":
        return _broken_body(error, url, received)
    if isinstance(error, httpx2.ConnectTimeout):
        patience = _within(None if timeout is None else timeout.connect)
        what = f"no connection {patience}; is the host reachable?"
        if "TLS" in str(error):
            what = f"no TLS handshake {patience}; does TLS listen there?"
        return ConnectTimeout(f"{url}: {what}", url=url, reason="timeout")
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return _no_connection(error, url)
    if isinstance(error, httpx2.ReadTimeout):
        patience = _within(None if timeout is None else timeout.first_event)
        return ReadTimeout(
            f"{url}: no response {patience}; allow more with a longer timeout to the first event", url=url
        )
    if isinstance(error, httpx2.WriteTimeout):
        return WriteTimeout(f"{url}: the server stopped reading the request", url=url)
    if isinstance(error, httpx2.WriteError):
        return WriteError(f"{url}: the connection was lost while the request was sent: {_why(error)}", url=url)
    if isinstance(error, httpx2.RemoteProtocolError) and "without sending" not in str(error):
        return ProtocolError(f"{url}: what answers there does not speak HTTP properly: {_why(error)}", url=url)
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return ReadError(f"{url}: the server closed the connection before it answered", url=url)
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return InvalidURL(f"{url}: {_why(error)}", url=url)
    if isinstance(error, httpx2.LocalProtocolError):
        return ProtocolError(f"{url}: the request cannot be sent as it is: {_why(error)}", url=url)
    return TransportError(f"{url}: {_why(error)}", url=url)


def _within(seconds: float | None) -> str:
    return "in time" if seconds is None else f"within {seconds:g} s"


def located(error: PenstockError, url: str) -> PenstockError:
    """An error of the engine's, which knows no URL, with the URL in it."""
    error.args = (f"{shown(url)}: {error}",)
    error.url = shown(url)
    return error


def _broken_body(error: Exception, url: str, received: int) -> PenstockError:
    after = f"after {received:,} bytes"
    if isinstance(error, LimitExceeded | InBandError):
        return located(error, url)
    if isinstance(error, ProtocolError):
        return ProtocolError(f"{url}: the response's framing is broken {after}: {_why(error)}", url=url)
    if isinstance(error, httpx2.TimeoutException):
        return StreamStalled(f"{url}: the stream went silent {after}", url=url)
    if isinstance(error, httpx2.RemoteProtocolError) and not _is_early_close(error):
        return ProtocolError(f"{url}: the response's framing is broken {after}: {_why(error)}", url=url)
    how = "the server closed the connection" if _is_early_close(error) else "the connection was lost"
    return StreamTruncated(f"{url}: the body broke off {after}: {how} before the end", url=url)


def _is_early_close(error: Exception) -> bool:
    return isinstance(error, httpx2.RemoteProtocolError | StreamTruncated) and "closed connection" in str(error)


def _no_connection(error: Exception, url: str) -> ConnectError:
    for cause in _causes(error):
        match cause:
            case socket.gaierror():
                host = urlsplit(url).hostname
                return ConnectError(f"{url}: there is no host {host!r}; check the name", url=url, reason="dns")
            case ssl.SSLCertVerificationError():
                return ConnectError(
                    f"{url}: its TLS certificate cannot be trusted: {cause.verify_message}", url=url, reason="tls"
                )
            case ssl.SSLError():
                return ConnectError(
                    f"{url}: no TLS connection ({cause.reason or cause}); is it an https server?", url=url, reason="tls"
                )
            case ConnectionRefusedError():
                return ConnectError(f"{url}: connection refused; is a server running there?", url=url, reason="refused")
            case ConnectionResetError():
                return ConnectError(f"{url}: connection reset while connecting", url=url, reason="reset")
            case OSError() if cause.errno:
                return ConnectError(f"{url}: no connection: {cause.strerror or cause}", url=url, reason="unreachable")
    return ConnectError(f"{url}: no connection: {_why(error)}", url=url)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and the members of groups on the way."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        cause = queue.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            queue.extend(cause.exceptions)
        queue += [cause.__cause__, cause.__context__]


def _why(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
