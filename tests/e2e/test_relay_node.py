"""What JavaScript has, through the relay: npm's `eventsource` as a reader, npm's aimock as the upstream of the SDKs.

The packages are installed at these very versions, and kept in pytest's cache; where there is no node, or no registry to
install them from, the tests are skipped, with the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.conftest import Serve, Start
from tests.e2e.fault_proxy import Harm, Leg, Plan, fault_proxy
from tests.e2e.process import PATIENCE, Server, eventually
from tests.relay.readers import origin

NODE, NPM = shutil.which("node"), shutil.which("npm")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.soak,  # an installation asks a registry, and takes its time
    pytest.mark.timeout(180),
    pytest.mark.skipif(NODE is None or NPM is None, reason="node and npm are not installed"),
]

PACKAGES = ("eventsource@4.1.1", "@copilotkit/aimock@1.43.0")
CONFIG = """
[defaults]
upstream = "{upstream}"
ids = "ours"
keep_alive = "30ms"
on_disconnect = "grace:60s"
"""


@pytest.fixture(scope="session")
def packages(pytestconfig: pytest.Config) -> Path:
    """The packages' folder."""
    cache = pytestconfig.cache
    assert cache is not None
    there = cache.mkdir("npm") / "_".join(PACKAGES).replace("/", "_")
    if not there.exists():
        folder = Path(tempfile.mkdtemp(dir=there.parent))
        command = [str(NPM), "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            failure = done.stderr if done.returncode else ""
        except subprocess.TimeoutExpired:
            failure = "it took more than two minutes"
        if failure:
            shutil.rmtree(folder)
            pytest.skip(f"npm cannot install {' and '.join(PACKAGES)}: {failure.strip().splitlines()[-1][:200]}")
        try:
            folder.rename(there)
        except OSError:  # another process was first
            shutil.rmtree(folder)
    return there / "node_modules"


@pytest.fixture
def keeping(serve: Serve, tmp_path: Path) -> Any:
    def start(upstream: str) -> Server:
        config = tmp_path / "relay.toml"
        config.write_text(CONFIG.format(upstream=upstream))
        return serve("relay", "--config", config)

    return start


# -- eventsource ------------------------------------------------------------------------------------------------------

EVENT_SOURCE = """
import {{ EventSource }} from {module};
const source = new EventSource({url});
source.onmessage = (event) => console.log(JSON.stringify({{ data: event.data, id: event.lastEventId }}));
source.onerror = (event) => {{
  if (source.readyState === EventSource.CLOSED) console.log(JSON.stringify({{ closed: event.code ?? null }}));
}};
"""


@pytest.mark.parametrize("harm", ["cut", "reset"])
async def test_an_event_source_that_is_cut_off_three_times_gets_every_event_once_and_its_204(
    packages: Path, keeping: Any, harm: Harm
) -> None:
    async with origin() as upstream:
        relay = keeping(upstream.url)
        plans = [Plan(down=Leg(harm, at=(b"data: ", count))) for count in (5, 1, 7)]
        async with fault_proxy(relay.url, *plans) as proxy:
            module = json.dumps((packages / "eventsource" / "dist" / "index.js").as_uri())
            program = EVENT_SOURCE.format(module=module, url=json.dumps(f"{proxy.url}/events"))
            node = await asyncio.create_subprocess_exec(
                *(str(NODE), "--input-type=module", "-e", program), stdout=asyncio.subprocess.PIPE
            )
            try:
                call = await upstream.call()
                await call.head()
                for number in range(60):
                    await call.send(b"retry: 20\ndata: %d\n\n" % number)
                    await asyncio.sleep(0.02)
                await call.end()
                async with asyncio.timeout(PATIENCE):
                    out, _ = await node.communicate()  # it ends by itself: nothing keeps it alive
            finally:
                if node.returncode is None:
                    node.kill()
                    await node.wait()
            *events, closed = [json.loads(line) for line in out.decode().splitlines()]
            assert [int(event["data"]) for event in events] == list(range(60))
            assert len({event["id"] for event in events}) == 60
            assert closed == {"closed": 204}
            assert [passage.harmed for passage in proxy.passages[:3]] == [True] * 3
            assert len(upstream.calls) == 1


# -- aimock -----------------------------------------------------------------------------------------------------------

ANSWER = "Because the water runs and the wheel turns."


@pytest.fixture
def aimock(packages: Path, start: Start, tmp_path: Path) -> str:
    """The URL of a server that speaks as the providers do."""
    fixtures = tmp_path / "fixtures"
    fixtures.mkdir()
    said = {"fixtures": [{"match": {"userMessage": "why"}, "response": {"content": ANSWER}}]}
    (fixtures / "why.json").write_text(json.dumps(said))
    cli = packages / "@copilotkit" / "aimock" / "dist" / "cli.js"
    options = ("-p", "0", "-h", "127.0.0.1", "-f", fixtures, "-l", "50", "-c", "5")
    out = tmp_path / "aimock"
    with out.open("wb") as both:
        start(cli, *options, program=(str(NODE),), stdout=both, env={**os.environ, "NO_COLOR": "1"})
    return listening(out)


def listening(out: Path) -> str:
    def found() -> str | None:
        return next((line.split()[-1] for line in out.read_text().splitlines() if "listening on" in line), None)

    return eventually(found, "aimock's address")


async def test_the_sdks_read_what_aimock_says(keeping: Any, aimock: str) -> None:
    url = keeping(aimock).url
    why: Any = [{"role": "user", "content": "why?"}]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", timeout=PATIENCE, max_retries=0) as client:
        chat = await client.chat.completions.create(
            model="gpt-4o", messages=why, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in chat]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        assert chunks[-1].usage is not None
        async with client.responses.stream(model="gpt-4o", input="why?") as stream:
            deltas = [each.delta async for each in stream if each.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert "".join(deltas) == final.output_text == ANSWER
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", timeout=PATIENCE, max_retries=0) as claude:
        async with claude.messages.stream(model="claude-sonnet-4", max_tokens=99, messages=why) as message:
            words = [text async for text in message.text_stream]
            whole = await message.get_final_message()
        assert "".join(words) == ANSWER
        assert whole.stop_reason == "end_turn"
