"""Two routes that the Vercel AI SDK's ``useChat({resume: true})`` reads: one that answers, one that resumes.

In the page::

    const chat = useChat({ id, resume: true, transport: new DefaultChatTransport({ api: "/api/chat" }) });

``POST /api/chat`` starts the answer as a UI message stream; when the page is loaded again, the hook asks
``GET /api/chat/{id}/stream``, which plays what there is of a running answer and goes on, or says 204::

    uvicorn examples.ai_sdk_route:app --port 8000
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

import penstock

WORD_SECONDS = float(os.environ.get("WORD_SECONDS", "0.1"))

relay = penstock.Relay("http://127.0.0.1:9", store="memory://")  # it has an upstream, which this example does not ask
app = FastAPI(lifespan=relay.lifespan)


class Chat(BaseModel):
    """What `useChat` posts, as far as it matters here."""

    id: str
    messages: list[dict[str, Any]]


def asked(chat: Chat) -> str:
    """The text of the last message."""
    return "".join(part.get("text", "") for part in chat.messages[-1].get("parts", []))


async def answer(chat: Chat) -> AsyncIterator[dict[str, Any]]:
    """The parts of a UI message; here an echo, in earnest a model's words."""
    yield {"type": "start", "messageId": f"answer-{len(chat.messages)}"}
    yield {"type": "text-start", "id": "0"}
    for word in f"You said: {asked(chat)}".split():
        yield {"type": "text-delta", "id": "0", "delta": word + " "}
        await asyncio.sleep(WORD_SECONDS)
    yield {"type": "text-end", "id": "0"}
    yield {"type": "finish"}


@app.post("/api/chat")
async def chat(request: Request, chat: Chat) -> Response:
    """Answer, as a UI message stream; its [DONE] and its failures are said in its own words."""
    key = f"chat:{chat.id}"
    return await relay.stream(request, lambda: answer(chat), key=key, if_running="replace", dialect="ai-sdk")


@app.get("/api/chat/{id}/stream")
async def again(request: Request, id: str) -> Response:
    """What the hook asks for when the page is loaded again."""
    return await relay.resume(request, key=f"chat:{id}", finished=204)
