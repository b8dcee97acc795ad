"""`penstock relay`: the gateway."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from penstock.cli import options, output
from penstock.cli.run import run_server
from penstock.client.seam import shown
from penstock.client.settings import Timeout
from penstock.errors import InvalidURL
from penstock.eventlog.memory import MemoryLog
from penstock.relay.app import Relay, new_via
from penstock.relay.operator.admin import Admin
from penstock.relay.settings.config import LEAST_SECRET, Config, ConfigError, contradictions, describe, load
from penstock.relay.settings.keys import SECRET
from penstock.relay.settings.policy import PATIENCE, OnDisconnect, OwnerFrom, Policy
from penstock.relay.settings.rules import HeaderRules
from penstock.relay.settings.store import Store
from penstock.relay.streams.streams import Streams
from penstock.server.listen import address, bind, bound_to, hold
from penstock.server.serve import beside, serve
from penstock.server.workers import supervise

MOST_WORKERS = 256

T = TypeVar("T")


def _workers(value: int | None) -> int | None:
    """A number of processes, checked."""
    if value is None:
        return None
    if not 1 <= value <= MOST_WORKERS:
        raise typer.BadParameter(
            f"{value} is not a number of processes from 1 to {MOST_WORKERS}: as many as there are cores is plenty"
        )
    if value > 1 and sys.platform == "win32":
        raise typer.BadParameter("several processes cannot share an address on Windows: leave it at 1")
    return value


def _grace(value: float | None) -> float | None:
    return None if value is None else options.grace(value)


def _listen(value: str | None) -> str | None:
    """``HOST:PORT``, checked, with the host written out."""
    return None if value is None else address(*options.listen(value))


def _read(make: Callable[[str], T]) -> Callable[[str | None], T | None]:
    """An option's reader, whose ValueError is the option's."""

    def read(value: str | None) -> T | None:
        try:
            return None if value is None else make(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return read


def _telemetry(value: str | None) -> str | None:
    """``otel``, with all that it takes."""
    if _one_of("otel")(value) is not None:
        try:
            from penstock.telemetry.opentelemetry.environment import exporters

            exporters()
        except (ModuleNotFoundError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None
    return value


def _one_of(*allowed: str) -> Callable[[str | None], str | None]:
    def read(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}")
        return value

    return read


def relay(
    upstream: Annotated[
        str | None,
        typer.Argument(metavar="UPSTREAM", help="The URL that requests are passed on to; or --config says where."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file with settings for each route: docs/relay-config.md."),
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Say what the settings come to, or all that is wrong, and end.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            callback=_listen,
            metavar="HOST:PORT",
            help="Where to listen; port 0 is any free one. [default: 127.0.0.1:8081]",
        ),
    ] = None,
    admin_listen: Annotated[
        str | None,
        typer.Option(
            callback=_listen,
            metavar="HOST:PORT",
            help="Where the operator's page, streams and metrics are; without it nowhere.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'Name: value'", help="Set on every request to the upstream."),
    ] = None,
    timeout_connect: Annotated[
        float | None,
        typer.Option(
            callback=options.seconds,
            metavar="SECONDS",
            help="To a connection to the upstream. [default: 5]",
        ),
    ] = None,
    timeout_first: Annotated[
        float | None,
        typer.Option(callback=options.seconds, metavar="SECONDS", help="To the upstream's first byte. [default: 300]"),
    ] = None,
    timeout_between: Annotated[
        float | None,
        typer.Option(
            callback=options.seconds, metavar="SECONDS", help="Between two pieces of its body. [default: 300]"
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(callback=_grace, metavar="SECONDS", help="For running streams after SIGTERM. [default: 5]"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            callback=_read(lambda text: Store(text).url),
            metavar="STORE",
            help=(
                "Where streams are kept, for readers to come back to: memory://, sqlite:///FILE, redis://HOST, or "
                "none. [default: memory://]"
            ),
        ),
    ] = None,
    on_disconnect: Annotated[
        str | None,
        typer.Option(
            callback=_read(lambda text: OnDisconnect.parse(text) and text),
            metavar="POLICY",
            help="When the last reader leaves: auto, cancel, grace:30s or detach. [default: auto]",
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            callback=_one_of("auto", "ours", "upstream"),
            metavar="IDS",
            help="Whose ids the events carry: auto, ours or upstream. [default: auto]",
        ),
    ] = None,
    early_headers: Annotated[
        bool,
        typer.Option(
            "--early-headers",
            help="Answer whoever asks for events before the upstream does, and tell its failures in the stream.",
        ),
    ] = False,
    owner: Annotated[
        str | None,
        typer.Option(
            callback=_read(lambda text: str(OwnerFrom.parse(text) or "none")),
            metavar="OWNER",
            help="Who may read a stream again: header:NAME, cookie:NAME, or none: whoever has its id. [default: none]",
        ),
    ] = None,
    telemetry: Annotated[
        str | None,
        typer.Option(
            callback=_telemetry,
            metavar="otel",
            help="Send spans and measurements, as the OTEL_ environment says: docs/telemetry.md.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            callback=_workers,
            metavar="N",
            help="Processes that share the address, for several cores; they cannot share memory://. [default: 1]",
        ),
    ] = None,
    json: options.Json = False,
) -> int:
    """Relay every request to an upstream, each chunk as it comes, and keep streams for readers that come back.

    Whatever the method, the body is streamed both ways. An event stream or NDJSON is kept: a reader that is cut off
    resumes it, others join it, it can be stopped, and an upstream that breaks off never looks complete.
    """
    of_all = {
        "listen": listen,
        "admin_listen": admin_listen,
        "store": None if store is None else Store(store),
        "workers": workers,
        "grace": grace,
    }
    of_route = {
        "--header": header or None,
        "--timeout-connect": timeout_connect,
        "--timeout-first": timeout_first,
        "--timeout-between": timeout_between,
        "--on-disconnect": on_disconnect,
        "--ids": ids,
        "--early-headers": early_headers or None,
        "--owner": owner,
    }
    said: dict[str, Any] = {key: value for key, value in of_all.items() if value is not None}
    if config is not None:
        for name, value in of_route.items():
            if value is not None:
                raise typer.BadParameter(f"{name} and --config do not go together: write it in the file's [defaults]")
        try:
            settings = replace(load(config, upstream=upstream), **said)
        except ConfigError as error:
            return _mistaken(error, as_json=json)
        except InvalidURL:
            raise
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    else:
        if upstream is None:
            raise typer.BadParameter("there is nothing to relay to: write the UPSTREAM's URL, or --config FILE")
        timeout = {"connect": timeout_connect, "first_event": timeout_first, "between_events": timeout_between}
        try:
            policy = Policy(
                upstream=upstream,
                timeout=_with(PATIENCE, timeout),
                on_disconnect=OnDisconnect.parse(on_disconnect or "auto"),
                ids=ids or "auto",  # type: ignore[arg-type]  # checked when it was read
                early_headers=0.0 if early_headers else None,
                owner=OwnerFrom.parse(owner or "none"),
                request_headers=HeaderRules(options.headers(header or [])),
            )
        except InvalidURL:
            raise
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        settings = Config(**said, default=policy, secret=_secret())
    refused = next(_refusals(settings, None if config is None else said), None)
    if refused is not None:
        raise typer.BadParameter(refused)
    if check_config:
        _describe(settings, as_json=json)
        return 0
    return _serve(settings, telemetry=telemetry is not None, as_json=json)


# -- what is meant ----------------------------------------------------------------------------------------------------


def _with(timeout: Timeout, said: dict[str, float | None]) -> Timeout:
    given: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    return replace(timeout, **given)


def _secret() -> bytes | None:
    secret = os.environ.get(SECRET, "").encode()
    if secret and len(secret) < LEAST_SECRET:
        raise typer.BadParameter(f"{SECRET} is too short to keep anything secret: {LEAST_SECRET} bytes at the least")
    return secret or None


def _refusals(config: Config, over_file: dict[str, Any] | None) -> Iterator[str]:
    """What cannot be served, each key by itself being sound.

    Args:
        config: What was read.
        over_file: The options that took the place of what a file says; None without a file.
    """
    if config.workers > 1 and config.store.kind == "memory":
        yield "several processes cannot share memory://: use sqlite:///FILE, redis://HOST, or --store none"
    if config.workers > 1 and config.admin_listen is not None:
        yield (
            f"the operator's page shows one process, and there would be {config.workers}: leave --admin-listen or "
            "--workers out"
        )
    # What the file itself contradicts has been told with its lines; here it is what options made of it. Nobody must
    # say on a command line who reads: the default is in the banner.
    written: Callable[[Any], bool] = (lambda path: True) if over_file is None else (lambda path: path[-1] == "owner")
    for found in contradictions(config, written=written):
        key = str(found.path[-1])
        is_option = key != SECRET and (over_file is None or key in over_file)
        name = f"--{key.replace('_', '-')}" if is_option else key
        yield f"{name} {found.message}" if found.message.startswith("is ") else f"{name}: {found.message}"


def _mistaken(error: ConfigError, *, as_json: bool) -> int:
    """Every mistake of a file, on a line of its own; the exit code of wrong usage."""
    if as_json:
        record = output.error_record(error, " ".join(str(error).split()))
        record["error"]["mistakes"] = [
            {"line": each.line, "key": each.key, "message": each.message} for each in error.mistakes
        ]
        output.record(record)
    else:
        first, *rest = str(error).splitlines()
        for line in (f"penstock: {first}", *rest):
            output.note(output.printable(line))
    return 2


def _describe(config: Config, *, as_json: bool) -> None:
    if as_json:
        output.record({"config": _summary(config)})
    else:
        for line in describe(config).splitlines():
            output.data(output.printable(line))


def _summary(config: Config) -> dict[str, Any]:
    return {
        "listen": config.listen,
        "admin_listen": config.admin_listen,
        "store": str(config.store),
        "workers": config.workers,
        "grace": config.grace,
        "routes": [{"match": str(policy.match), "upstream": shown(policy.upstream)} for policy in config.routes],
        "default": None if config.default is None else shown(config.default.upstream),
    }


# -- serving ----------------------------------------------------------------------------------------------------------


def _serve(config: Config, *, telemetry: bool, as_json: bool) -> int:
    shared = config.workers > 1
    new_relay = partial(_new_relay, config, new_via())
    # Before anything is bound: what cannot be served is told. Where there are workers, it is they who tell of requests.
    app = new_relay(telemetry=telemetry and not shared)
    host, port = options.listen(config.listen)
    sock = hold(host, port) if shared else bind(host, port)
    banner = _Banner(config, None if config.default is None else shown(app.upstream), as_json=as_json)
    if shared:
        return run_server(
            supervise(
                partial(new_relay, telemetry=telemetry),
                sock,
                workers=config.workers,
                grace=config.grace,
                run=run_server,
                on_listening=banner.tell,
            )
        )
    if config.admin_listen is None:
        return run_server(serve(app, sock, grace=config.grace, on_listening=banner.tell))
    operator, operator_port = options.listen(config.admin_listen)
    try:
        admin_sock = bind(operator, operator_port)
    except BaseException:
        sock.close()
        raise
    banner.admin = bound_to(admin_sock)
    app.show_to(*dict.fromkeys((f"http://{banner.admin}", f"http://localhost:{banner.admin.rpartition(':')[2]}")))
    promises = {policy.promise for policy in config.policies}
    admin = Admin(
        app.kept or Streams(MemoryLog()),  # nothing is kept: there is nothing to list
        app.routes,
        public=f"http://{bound_to(sock)}",
        store=str(config.store),
        promise=promises.pop() if len(promises) == 1 else "fast or durable, by the route",
        hosts=(operator,),
    )

    async def both() -> int:
        async with beside(admin, admin_sock):
            return await serve(app, sock, grace=config.grace, on_listening=banner.tell)

    return run_server(both())


def _new_relay(config: Config, via: str, *, telemetry: bool) -> Relay:
    relay = Relay.configured(config, via=via)
    if telemetry:
        from penstock.telemetry.opentelemetry import instrument_relay
        from penstock.telemetry.opentelemetry.environment import set_up

        set_up()
        instrument_relay(relay)
    return relay


@dataclass
class _Banner:
    """What is said once requests are taken."""

    config: Config
    upstream: str | None
    as_json: bool
    admin: str | None = None

    def tell(self, where: str) -> None:
        """Say where the relay listens, what it keeps and what it promises."""
        config = replace(self.config, listen=where, admin_listen=self.admin)
        if self.as_json:
            listening: dict[str, Any] = {"url": f"http://{where}", "upstream": self.upstream, "workers": config.workers}
            if self.admin is not None:
                listening["admin"] = f"http://{self.admin}"
            output.record({"listening": {**listening, "store": str(config.store)}})
            return
        to = "" if self.upstream is None else f" to {self.upstream}"
        several = f", with {config.workers} workers" if config.workers > 1 else ""
        output.note(f"penstock relay on http://{where}{to}{several}")
        for line in describe(config).splitlines()[1:]:
            output.note(output.printable(f"  {line}"))
