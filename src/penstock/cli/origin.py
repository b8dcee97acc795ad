"""`penstock origin`: the sample servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options, output
from penstock.cli.run import run_server
from penstock.origin.app import INDEX
from penstock.origin.app import app as sample_servers
from penstock.server.listen import bind
from penstock.server.serve import serve


def origin(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is any free one.")] = (
        "127.0.0.1:8080"
    ),
    directory: Annotated[Path, typer.Option(metavar="DIR", help="Where uploads are stored.")] = Path(),
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A real file for /file, instead of the generated one.")
    ] = None,
    grace: Annotated[
        float, typer.Option(callback=options.grace, metavar="SECONDS", help="For running requests after SIGTERM.")
    ] = 1.0,
    json: options.Json = False,
) -> int:
    """Run the sample servers: a large file, an upload, and several streams, each of which can be told to fail."""
    app = sample_servers(directory, file)
    sock = bind(*options.listen(listen))

    def listening(where: str) -> None:
        if json:
            output.record({"listening": {"url": f"http://{where}", "directory": str(directory.resolve())}})
            return
        output.note(f"penstock origin on http://{where}, uploads go to {directory.resolve()}")
        if file is not None:
            output.note(f"/file serves {file.resolve()}")
        output.note("")
        for line in INDEX.splitlines()[2:]:
            output.note(f"  {line}" if line else "")

    return run_server(serve(app, sock, grace=grace, raw_connection=True, on_listening=listening))
