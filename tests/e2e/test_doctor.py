"""`penstock doctor` against a real nginx with everything that goes wrong in one, before a real origin."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.doctor.diagnose import diagnose
from penstock.doctor.examine import Order, examine
from penstock.doctor.findings import Examination, Finding
from tests.e2e.process import PATIENCE, Server, eventually, one_line, penstock

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)"),
]

EVENTS = "/events?count=16&interval=0.1"  # 1.5 s
TEXT = "/generate?chunks=16&interval=0.1"

FLOWS = 'proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection "";'
GZIP = "gzip on; gzip_types text/event-stream text/plain; gzip_min_length 0; gzip_proxied any;"


@dataclass(frozen=True)
class Case:
    """A location of nginx, what is asked of it, and what has to be found: kinds and severities, no other."""

    location: str
    path: str = EVENTS
    found: frozenset[str] = frozenset()
    compared: bool = True
    seconds: float = 10.0


CASES = {
    "everything right": Case(FLOWS),
    "everything right, text": Case(FLOWS, TEXT),
    "everything right, alone": Case(FLOWS, compared=False),
    "everything right, text, alone": Case(FLOWS, TEXT, compared=False),
    "proxy_buffering on": Case("proxy_buffering on;", found=frozenset({"buffered problem"})),
    "proxy_buffering on, text": Case("proxy_buffering on;", TEXT, frozenset({"buffered problem"})),
    "proxy_buffering on, alone": Case("proxy_buffering on;", found=frozenset({"buffered warning"}), compared=False),
    "proxy_buffering on, text with times, alone": Case(
        "proxy_buffering on;", TEXT, frozenset({"buffered problem"}), compared=False
    ),
    "proxy_buffering on, an endless stream": Case(
        "proxy_buffering on;", "/events?count=999&interval=0.1", frozenset({"buffered problem"}), seconds=2.0
    ),
    "gzip on, HTTP/1.0 to the server": Case(
        f"{GZIP} proxy_buffering off; proxy_http_version 1.0;", found=frozenset({"compressed note"})
    ),
    "gzip on, HTTP/1.1 to the server": Case(f"{GZIP} {FLOWS}", found=frozenset({"compressed note"})),
    "gzip on, alone": Case(f"{GZIP} {FLOWS}", found=frozenset({"compressed note"}), compared=False),
    "gzip on, proxy_buffering on": Case(
        f"{GZIP} proxy_buffering on;", found=frozenset({"buffered problem", "compressed note"})
    ),
    "proxy_read_timeout short, a stream that pauses": Case(
        f"{FLOWS} proxy_read_timeout 1s;", f"{EVENTS}&stall_after=4", frozenset({"timed-out problem"}), seconds=3.0
    ),
    "proxy_read_timeout short, a stream that pauses, alone": Case(
        f"{FLOWS} proxy_read_timeout 1s;",
        f"{EVENTS}&stall_after=4",
        frozenset({"timed-out problem"}),
        compared=False,
        seconds=3.0,
    ),
    "proxy_read_timeout short, a stream that begins late": Case(
        f"{FLOWS} proxy_read_timeout 1s;", f"{EVENTS}&delay=2.5", frozenset({"timed-out problem"})
    ),
    "proxy_hide_header": Case(f"{FLOWS} proxy_hide_header Cache-Control;", found=frozenset({"stripped problem"})),
    "proxy_hide_header of what matters less": Case(
        f"{FLOWS} proxy_hide_header X-Content-Type-Options;", found=frozenset({"stripped warning"})
    ),
    "proxy_hide_header Content-Type": Case(
        f"{FLOWS} proxy_hide_header Content-Type;", found=frozenset({"content-type problem"})
    ),
    "no Last-Event-ID": Case(f'{FLOWS} proxy_set_header Last-Event-ID "";', found=frozenset({"last-event-id problem"})),
    "chunked_transfer_encoding off": Case(
        f"{FLOWS} chunked_transfer_encoding off;", found=frozenset({"reframed warning"})
    ),
    "HTTP/1.0 to a server that breaks off": Case(
        "proxy_buffering off; proxy_http_version 1.0;",
        f"{EVENTS}&truncate_after=9",
        frozenset({"truncated problem"}),
    ),
    "a server that breaks off": Case(FLOWS, f"{EVENTS}&truncate_after=9", frozenset({"cut-off problem"})),
    "return 403": Case("return 403;", found=frozenset({"refused problem"})),
}


@pytest.fixture(scope="module")
def nginx(origin: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An nginx with a location per case before the origin; it inherits its socket, so that its port is surely free."""
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        sock.setblocking(False)  # as nginx leaves the ones that it opens itself
        port = sock.getsockname()[1]
        config = folder / "nginx.conf"
        config.write_text(_config(folder, port, origin.url))
        assert NGINX is not None
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [NGINX, "-p", str(folder), "-c", str(config), "-e", "stderr"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NGINX": f"{sock.fileno()};"},
                pass_fds=[sock.fileno()],
            )
        try:
            eventually((folder / "pid").exists, "nginx")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _config(folder: Path, port: int, origin: str) -> str:
    paths = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    locations = "\n".join(
        f"location /{number}/ {{ proxy_pass {origin}/; {case.location} }}" for number, case in enumerate(CASES.values())
    )
    return (
        # A process without a master does not survive its inherited socket.
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; {paths}\nserver {{ listen 127.0.0.1:{port};\n{locations}\n}} }}\n"
    )


def location(name: str) -> str:
    """The path of a case's location."""
    return f"/{list(CASES).index(name)}"


def examined(nginx: str, origin: Server) -> dict[str, Examination]:
    """All cases, examined at the same time: they mostly wait."""

    async def one(name: str, case: Case) -> Examination:
        upstream = f"{origin.url}{case.path}&case={location(name)[1:]}" if case.compared else None
        return await examine(
            Order(f"{nginx}{location(name)}{case.path}", upstream, seconds=case.seconds, max_items=100)
        )

    async def every() -> list[Examination]:
        return await asyncio.gather(*(one(name, case) for name, case in CASES.items()))

    return dict(zip(CASES, asyncio.run(every()), strict=True))


def test_nginx(nginx: str, origin: Server, subtests: pytest.Subtests) -> None:
    examinations = examined(nginx, origin)
    for name, examination in examinations.items():
        with subtests.test(name):
            told(diagnose(examination), CASES[name].found)
    with subtests.test("the figures say why"):
        figures(examinations)


def told(findings: list[Finding], expected: frozenset[str]) -> None:
    notes = {"no-ids", "no-keep-alive"}  # of the origin's streams, and true
    assert {f"{finding.kind} {finding.severity}" for finding in findings if finding.kind not in notes} == expected, (
        findings
    )
    for finding in findings:
        # A break in the midst has no setting in nginx, and no more has a refusal.
        assert any(remedy.software == "nginx" for remedy in finding.mend) or finding.kind in ("cut-off", "refused")


def found(findings: list[Finding], kind: str) -> Finding:
    (one,) = [finding for finding in findings if finding.kind == kind]
    return one


def figures(examined: dict[str, Examination]) -> None:
    held = found(diagnose(examined["proxy_buffering on"]), "buffered")
    assert held.says.startswith("nginx holds the stream back: what the upstream sends over ")
    assert (held.because["items"], held.because["bursts"]) == (16, 1)
    assert float(held.because["caught_up"]) > 0.9 * float(held.because["upstream_spread"]) > 1.0
    assert ("nginx", "proxy_buffering off;") in [remedy[:2] for remedy in held.mend]
    silent = found(diagnose(examined["proxy_buffering on, an endless stream"]), "buffered")
    assert "nothing came within 2.0 s" in silent.says
    cut = found(diagnose(examined["proxy_read_timeout short, a stream that pauses"]), "timed-out")
    assert cut.says.startswith("nginx breaks the stream off after ")
    assert 0.9 <= float(cut.because["silence"]) < 2.5
    assert cut.because["items"] == 4
    refused = found(diagnose(examined["proxy_read_timeout short, a stream that begins late"]), "timed-out")
    assert refused.because["status"] == 504
    stripped = found(diagnose(examined["proxy_hide_header"]), "stripped")
    assert stripped.because == {"cache-control": "no-store"}
    whole = found(diagnose(examined["HTTP/1.0 to a server that breaks off"]), "truncated")
    assert (whole.because["items"], whole.because["upstream_ended"]) == (9, "broken")
    assert "the server itself breaks" in found(diagnose(examined["a server that breaks off"]), "cut-off").says


def test_the_command_tells_it_in_words_and_exits_1(nginx: str, origin: Server) -> None:
    url = f"{nginx}{location('proxy_buffering on')}{EVENTS}"
    done = penstock("doctor", url, "--upstream", f"{origin.url}{EVENTS}")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0].startswith("upstream 200 HTTP/1.1 chunked text/event-stream")
    assert lines[1].startswith("url      200 HTTP/1.1 chunked text/event-stream")
    assert ", nginx; 16 events in 1 burst, from " in lines[1]
    assert any(line.startswith("PROBLEM  buffered: nginx holds the stream back: ") for line in lines)
    assert any("→ nginx: proxy_buffering off;" in line for line in lines)
    assert not any("HAProxy" in line for line in lines)  # nobody saw one
    assert lines[-1] == "1 problem"
    assert "listening to the upstream" in done.err


def test_the_command_exits_0_when_all_is_right(nginx: str) -> None:
    done = penstock("doctor", f"{nginx}{location('everything right')}{EVENTS}", "--json")
    assert (done.code, done.err) == (0, "")
    (record,) = done.records
    summary = record["summary"]
    assert (summary["verdict"], summary["problems"], summary["warnings"]) == ("fine", 0, 0)
    assert summary["heard"]["url"]["hops"] == ["nginx"]
    assert summary["heard"]["url"]["items"] == summary["heard"]["gzip"]["items"] == 16


def test_a_url_that_fails_is_one_line(nginx: str, closed_port: str) -> None:
    done = penstock("doctor", f"{closed_port}/")
    assert (done.code, done.out) == (1, "")
    assert one_line(done.err) == f"{closed_port}/: connection refused; is a server running there?"
    done = penstock("doctor", f"{nginx}{location('return 403')}/x", "--json")
    assert (done.code, done.error["type"]) == (1, "StatusError")
    assert "answered 403" in done.error["message"]
    done = penstock("doctor", "localhost/x")
    assert done.code == 2
    assert "not a full URL" in one_line(done.err)
