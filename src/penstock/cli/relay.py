"""`penstock relay`: the gateway."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from penstock.cli import options, output
from penstock.cli.run import run_server
from penstock.client.settings import Timeout
from penstock.relay.app import Relay, new_via
from penstock.server.listen import bind, hold
from penstock.server.serve import serve
from penstock.server.workers import supervise

MOST_WORKERS = 256


def _workers(value: int) -> int:
    """A number of processes, checked."""
    if not 1 <= value <= MOST_WORKERS:
        raise typer.BadParameter(
            f"{value} is not a number of processes from 1 to {MOST_WORKERS}: as many as there are cores is plenty"
        )
    if value > 1 and sys.platform == "win32":
        raise typer.BadParameter("several processes cannot share an address on Windows: leave it at 1")
    return value


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
    workers: Annotated[
        int, typer.Option(callback=_workers, metavar="N", help="Processes that share the address, for several cores.")
    ] = 1,
    json: options.Json = False,
) -> int:
    """Relay every request to an upstream, each chunk as it comes.

    Whatever the method, the body is streamed both ways; a slow reader slows the upstream, a reader that leaves cancels
    it, and an upstream that breaks off never looks complete.
    """
    timeout = Timeout(connect=timeout_connect, first_event=timeout_first, between_events=timeout_between)
    new_relay = partial(Relay, upstream, headers=options.headers(header or []), timeout=timeout, via=new_via())
    # Before anything is bound: what cannot be served is told, and so is what several processes cannot share.
    app = new_relay()
    address = options.listen(listen)

    def listening(where: str) -> None:
        if json:
            output.record({"listening": {"url": f"http://{where}", "upstream": app.upstream, "workers": workers}})
        else:
            several = f", with {workers} workers" if workers > 1 else ""
            output.note(f"penstock relay on http://{where} to {app.upstream}{several}")
            output.note("  nothing is buffered and nothing is kept: each chunk goes out as it comes, to one reader")

    if workers == 1:
        return run_server(serve(app, bind(*address), grace=grace, on_listening=listening))
    return run_server(
        supervise(new_relay, hold(*address), workers=workers, grace=grace, run=run_server, on_listening=listening)
    )
