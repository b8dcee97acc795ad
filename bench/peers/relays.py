"""A relay as one writes it by hand: `relays.py uvicorn-httpx2|aiohttp HOST PORT UPSTREAM`."""

from __future__ import annotations

import sys
from typing import Any

HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


def uvicorn_httpx2(host: str, port: int, upstream: str) -> None:
    """A plain ASGI app on uvicorn with httptools and uvloop; httpx2 to the upstream."""
    import httpx2
    import uvicorn

    unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=1000)
    client = httpx2.AsyncClient(base_url=upstream, timeout=None, limits=unlimited, trust_env=False)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        target = scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"connection")]
        async with client.stream(scope["method"], target, headers=headers) as response:
            kept = [pair for pair in response.headers.raw if pair[0].decode().lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    uvicorn.run(
        app,
        host=host,
        port=port,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="critical",
        backlog=16384,
    )


def aiohttp_both(host: str, port: int, upstream: str) -> None:
    """On aiohttp's server and its client, with uvloop."""
    import aiohttp
    import uvloop
    from aiohttp import web

    async def make() -> web.Application:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        )

        async def relay(request: web.Request) -> web.StreamResponse:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP | {"host"}}
            async with session.request(request.method, upstream + request.path_qs, headers=headers) as answer:
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", relay)
        return app

    web.run_app(make(), host=host, port=port, loop=uvloop.new_event_loop(), access_log=None, print=None, backlog=16384)


if __name__ == "__main__":
    kind, host, port, upstream = sys.argv[1:]
    {"uvicorn-httpx2": uvicorn_httpx2, "aiohttp": aiohttp_both}[kind](host, int(port), upstream)
