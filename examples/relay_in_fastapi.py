"""A route of one's own that streams an upstream's answer to its reader, each chunk as it comes.

The upstream's address and its key stay here; the reader's own headers are not sent on. A reader that leaves cancels
the upstream, before its first byte as well as after::

    penstock origin --listen 127.0.0.1:8080
    uvicorn examples.relay_in_fastapi:app --port 8000
    curl -N localhost:8000/api/chat -H 'Content-Type: application/json' -d '{"question": "why?"}'
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

import penstock

relay = penstock.Relay(
    os.environ.get("UPSTREAM", "http://127.0.0.1:8080"),
    headers={"Authorization": f"Bearer {os.environ.get('UPSTREAM_KEY', 'none')}"},
)
app = FastAPI(lifespan=relay.lifespan)


class Chat(BaseModel):
    """What a reader asks."""

    question: str


@app.post("/api/chat")
async def chat(request: Request, body: Chat) -> Response:
    """Stream the model's answer."""
    asked = {"model": "sample", "stream": True, "messages": [{"role": "user", "content": body.question}]}
    return await relay.forward(request, "POST", "/v1/chat/completions", json=asked)


@app.get("/api/ticks")
async def ticks(request: Request) -> Response:
    """Stream ten chunks a second."""
    return await relay.forward(request, "GET", "/generate?chunks=100&interval=0.1")
