"""client.js under node: a program of a few lines, with the real fetch and real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import penstock.relay.operator

PAGE = Path(penstock.relay.operator.__file__).parent / "page"
NODE = shutil.which("node")
PATIENCE = 30.0  # seconds that anything here may take that takes none on an idle machine

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")

PRELUDE = """
import {{ Decoder, PenstockError, Stream, backoff, forget, penstock, resume, stream }} from {client};
const given = {given};
const say = (value) => console.log(JSON.stringify(value));
const quick = {{ initial: 1, maximum: 5 }};
const told = (error) => ({{ kind: error.kind, status: error.status, code: error.code, message: error.message }});
class Kept extends Map {{ // a Storage
  getItem(key) {{ return this.get(key) ?? null; }}
  setItem(key, value) {{ this.set(key, value); }}
  removeItem(key) {{ this.delete(key); }}
}}
async function read(events) {{
  const data = [];
  try {{
    for await (const event of events) data.push(event.data);
    return {{ data, end: "done" }};
  }} catch (error) {{
    return {{ data, end: told(error) }};
  }}
}}
"""


async def node(program: str, **given: Any) -> list[Any]:
    """Run a program to its end; what it has said. It ends by itself, for nothing is left that would keep it alive.

    Args:
        program: A module's text; `say(value)` reports, `given` has the values.
        given: For the program.
    """
    assert NODE is not None
    prelude = PRELUDE.format(client=json.dumps((PAGE / "client.js").as_uri()), given=json.dumps(given))
    process = await asyncio.create_subprocess_exec(
        *(NODE, "--input-type=module", "--no-warnings", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"},
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate((prelude + program).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return [json.loads(line) for line in out.decode().split("\n")[:-1]]
