"""An agent's steps as a stream that survives its reader: the agent runs once, whoever watches.

Close the tab while it works, and open it again: the steps so far come at once, and the rest as they happen::

    uvicorn examples.agent_in_fastapi:app --port 8000
    curl -N -X POST localhost:8000/api/agent/1 -H 'Content-Type: application/json' -d '{"goal": "tea"}'
    curl -N localhost:8000/api/agent/1
    curl -X POST localhost:8000/api/agent/1/stop
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel

import penstock

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.5"))

relay = penstock.Relay("http://127.0.0.1:9", store="memory://")  # it has an upstream, which this example does not ask
app = FastAPI(lifespan=relay.lifespan)
finished: list[str] = []


class Task(BaseModel):
    """What the agent is to do."""

    goal: str


class Step(BaseModel):
    """What it says of its work."""

    number: int
    text: str


def current_user(x_user: str = Header("anonymous")) -> str:
    """Whoever asks; here a field says so, and in earnest a session that was checked."""
    return x_user


async def work(goal: str) -> AsyncIterator[Step]:
    """The agent: it plans, and makes ten steps of the plan."""
    try:
        for number in range(1, 11):
            yield Step(number=number, text=f"step {number} towards {goal}")
            await asyncio.sleep(STEP_SECONDS)
    finally:
        print(f"the agent puts its tools down: {goal}", file=sys.stderr)


async def save(end: penstock.StreamEnd) -> None:
    """Called once, however it ended: the steps are kept for good."""
    steps = await end.records()
    print(f"{end.key}: {end.reason} after {len(steps)} steps", file=sys.stderr)


@app.post("/api/agent/{id}")
async def run(request: Request, id: str, task: Task, user: str = Depends(current_user)) -> Response:
    """Start the agent, once: a second click on the button joins what runs."""
    return await relay.stream(request, lambda: work(task.goal), key=f"agent:{id}", owner=user, on_end=save)


@app.get("/api/agent/{id}")
async def again(request: Request, id: str, user: str = Depends(current_user)) -> Response:
    """After a reload: all steps so far, then live."""
    return await relay.resume(request, key=f"agent:{id}", owner=user)


@app.post("/api/agent/{id}/stop")
async def stop(id: str, user: str = Depends(current_user)) -> dict[str, bool]:
    """Stop it: the generator's `finally` runs."""
    return {"stopped": await relay.stop(key=f"agent:{id}", owner=user)}
