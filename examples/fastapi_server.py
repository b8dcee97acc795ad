"""A FastAPI server that streams: `POST /trigger_invocation` answers with five server-sent events.

Run it, and read it from another terminal::

    python examples/fastapi_server.py --port 8000       # or: uvicorn --app-dir examples fastapi_server:app
    penstock tail http://127.0.0.1:8000/trigger_invocation -d '{"query": "hello"}'
    python examples/streaming_client.py
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Invocation(BaseModel):
    """What is asked."""

    query: str


def sse(value: dict[str, Any]) -> str:
    """One event on the wire."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


async def work(query: str) -> AsyncIterator[str]:
    """Stand in for an agent: each step is told as soon as it is done."""
    for count in range(1, 5):
        yield sse({"Count": count, "Data": f"Event {count}"})
        await asyncio.sleep(0.1)
    yield sse({"Data": "Stream completed"})


@app.post("/trigger_invocation")
async def trigger_invocation(invocation: Invocation) -> StreamingResponse:
    return StreamingResponse(work(invocation.query), media_type="text/event-stream")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A FastAPI server that streams")
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, port=parser.parse_args().port)
