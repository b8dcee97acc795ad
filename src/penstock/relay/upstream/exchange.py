"""An answer that is passed on and not kept: from its head to its one end, for one reader.

==============================  =====================================================================
what happens                    what the reader sees
==============================  =====================================================================
the upstream fails before its   502, 503 or 504 with a reason
headers
the upstream fails after them   the bytes that came, then the connection closed without the last chunk
the reader leaves, at any time  (nothing); the upstream's request is cancelled at once
the server cancels us           as when the upstream fails after its headers
==============================  =====================================================================

A reader that stops reading stops the reading from the upstream: `write` waits for it, and a direct writer says so.
"""

from __future__ import annotations

import logging

import anyio

from penstock.client.client import AsyncClient
from penstock.client.response import Response
from penstock.errors import CircuitOpenError, PenstockError
from penstock.relay.downstream.reader import Direct, Downstream
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.upstream.headers import Raw, to_reader
from penstock.relay.upstream.outgoing import Outgoing, answer_to

logger = logging.getLogger("penstock.relay")


async def carry(
    client: AsyncClient, outgoing: Outgoing, downstream: Downstream, *, rules: HeaderRules, more_headers: Raw
) -> None:
    """Send the request to the upstream and its answer to the reader, each chunk as it comes.

    Cancellation: the upstream's request is abandoned and its connection closed.

    Args:
        client: What to reach the upstream through.
        outgoing: The request.
        downstream: The reader.
        rules: What the route adds to and drops from the answer's fields.
        more_headers: Fields to set on the answer, in the place of the upstream's own of the same name.
    Raises:
        PenstockError: The upstream failed after its headers. It is for the server to see, so that it breaks the
            reader's connection off; a clean return would pass for a whole answer on some servers.
    """
    with anyio.CancelScope() as scope:
        downstream.on_departure(scope.cancel)
        try:
            response = await outgoing.open(client, downstream.body())
        except PenstockError as error:
            await refuse_with(downstream, error, outgoing)
        else:
            async with response:
                await _carry(response, outgoing, downstream, rules, more_headers)
    if scope.cancel_called:
        await _left(outgoing, downstream)


async def pass_on(
    response: Response, outgoing: Outgoing, downstream: Downstream, *, rules: HeaderRules, more_headers: Raw
) -> None:
    """Give a response that is open already to the reader, as `carry` does.

    Cancellation: the reader is let go of; the response is whoever's opened it.
    """
    with anyio.CancelScope() as scope:
        downstream.on_departure(scope.cancel)
        await _carry(response, outgoing, downstream, rules, more_headers)
    if scope.cancel_called:
        await _left(outgoing, downstream)


async def refuse_with(downstream: Downstream, error: BaseException | None, outgoing: Outgoing | None) -> None:
    """Tell the reader that the upstream gave no answer; or, where it was not asked, when to come back."""
    if not isinstance(error, PenstockError):
        await downstream.refuse(502, "the upstream gave no answer")
        return
    status, reason, kind = answer_to(error)
    if outgoing is not None:
        logger.warning("%s %s: %d: %s", outgoing.method, outgoing.target.decode("latin-1"), status, error)
    if isinstance(error, CircuitOpenError):
        await downstream.put_off(status, reason, proxy_status=kind, after=error.retry_after)
    else:
        await downstream.refuse(status, reason, proxy_status=kind)


async def _left(outgoing: Outgoing, downstream: Downstream) -> None:
    logger.info(
        "%s %s: the reader left after %d bytes; the upstream is cancelled",
        outgoing.method,
        outgoing.target.decode("latin-1"),
        downstream.sent,
    )
    await downstream.dismiss()


async def _carry(
    response: Response, outgoing: Outgoing, downstream: Downstream, rules: HeaderRules, more_headers: Raw
) -> None:
    downstream.body_is_over()  # an upstream that answers early has heard enough
    ours = {name for name, _ in more_headers}
    headers = to_reader(
        [(name.lower(), value) for name, value in response.headers.raw],
        status=response.status,
        upstream=outgoing.url,
        root=outgoing.root,
    )
    kept = [pair for pair in rules.apply(headers) if pair[0] not in ours]
    await downstream.start(response.status, kept + more_headers)
    try:
        direct = downstream.direct()
        if direct is not None and response.can_push:
            await _carry_directly(response, downstream, direct)
        else:
            async for piece in response.raw():
                await downstream.write(piece)
    except PenstockError as error:
        await downstream.break_off(str(error))
        raise
    await downstream.finish()


async def _carry_directly(response: Response, downstream: Downstream, direct: Direct) -> None:
    """The same, but each piece goes from the upstream's callback to the reader's socket: no task wakes for it."""
    try:
        await response.push(direct.write, direct.open, chunk_sink=direct.write_chunk)
    finally:
        direct.close()
        downstream.sent += response.bytes_received
