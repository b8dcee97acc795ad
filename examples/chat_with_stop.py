"""A chat whose answer survives a reload and can be stopped; the OpenAI SDK reads it as it reads OpenAI.

The upstream's address and its key stay here. The answer goes on while its reader reloads the page, is stopped by the
stop button and by nothing else, and what it cost is known at every kind of end::

    penstock origin --listen 127.0.0.1:8080
    uvicorn examples.chat_with_stop:app --port 8000
    curl -N localhost:8000/v1/chat/completions -H 'X-Chat: 1' -H 'Content-Type: application/json' \
        -d '{"model": "sample", "stream": true, "messages": [{"role": "user", "content": "why?"}]}'
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, Request, Response

import penstock

relay = penstock.Relay(
    os.environ.get("UPSTREAM", "http://127.0.0.1:8080"),
    headers={"Authorization": f"Bearer {os.environ.get('UPSTREAM_KEY', 'none')}"},
    store="memory://",
)
app = FastAPI(lifespan=relay.lifespan)


def current_user(authorization: str = Header("")) -> str:
    """Whoever asks; in earnest a token that was checked."""
    return authorization


def bill(end: penstock.StreamEnd) -> None:
    """Called once, however the answer ended: what was produced has been paid for."""
    print(f"{end.key}: {end.reason} after {end.event_count} events, usage {end.usage}", file=sys.stderr)


@app.post("/v1/chat/completions")
async def chat(
    request: Request,
    body: Annotated[dict[str, Any], Body()],
    x_chat: Annotated[str, Header()],
    user: str = Depends(current_user),
) -> Response:
    """Stream the model's answer; a chat has one at a time."""
    path = os.environ.get("UPSTREAM_PATH", "/v1/chat/completions")
    key = f"chat:{x_chat}"
    return await relay.forward(
        request, "POST", path, json=body, key=key, owner=user, if_running="conflict", on_end=bill
    )


@app.get("/chats/{chat}/stream")
async def again(request: Request, chat: str, user: str = Depends(current_user)) -> Response:
    """After a reload: the answer so far, then live; 204 when there is none that runs."""
    return await relay.resume(request, key=f"chat:{chat}", owner=user, finished=204)


@app.post("/chats/{chat}/stop")
async def stop(chat: str, user: str = Depends(current_user)) -> dict[str, bool]:
    """The stop button."""
    return {"stopped": await relay.stop(key=f"chat:{chat}", owner=user)}
