"""`penstock relay`: the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli import options, output
from penstock.cli.run import run_server
from penstock.client.settings import Timeout
from penstock.relay.app import Relay
from penstock.server.listen import bind
from penstock.server.serve import serve


def relay(
    upstream: Annotated[str, typer.Argument(metavar="UPSTREAM", help="The URL that requests are passed on to.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is any free one.")] = (
        "127.0.0.1:8081"
    ),
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'Name: value'", help="Set on every request to the upstream."),
    ] = None,
    timeout_connect: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="To a connection to the upstream.")
    ] = 5.0,
    timeout_first: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="To the upstream's first byte.")
    ] = 300.0,
    timeout_between: Annotated[
        float, typer.Option(callback=options.seconds, metavar="SECONDS", help="Between two pieces of its body.")
    ] = 300.0,
    grace: Annotated[
        float, typer.Option(callback=options.grace, metavar="SECONDS", help="For running streams after SIGTERM.")
    ] = 5.0,
    json: options.Json = False,
) -> int:
    """Relay every request to an upstream, each chunk as it comes.

    Whatever the method, the body is streamed both ways; a slow reader slows the upstream, a reader that leaves cancels
    it, and an upstream that breaks off never looks complete.
    """
    timeout = Timeout(connect=timeout_connect, first_event=timeout_first, between_events=timeout_between)
    app = Relay(upstream, headers=options.headers(header or []), timeout=timeout)
    sock = bind(*options.listen(listen))

    def listening(where: str) -> None:
        if json:
            output.record({"listening": {"url": f"http://{where}", "upstream": app.upstream}})
        else:
            output.note(f"penstock relay on http://{where} to {app.upstream}")
            output.note("  nothing is buffered and nothing is kept: each chunk goes out as it comes, to one reader")

    return run_server(serve(app, sock, grace=grace, on_listening=listening))
