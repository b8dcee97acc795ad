"""The text of a chat stream, in whichever of the common protocols it comes.

===================  =========================================  =============================================
protocol             its events are known by                    the text is
===================  =========================================  =============================================
OpenAI completions   data with a list of ``choices``            the first choice's ``delta.content``, ``text``
OpenAI Responses     a type that begins with ``response.``      ``delta`` of response.output_text.delta
Anthropic messages   the types of its seven events              the text of a block, and of its text_deltas
===================  =========================================  =============================================

A type is the event's own, or that of its data where a proxy dropped the ``event:`` lines.
"""

from __future__ import annotations

import json
from typing import Any

from penstock.errors import DecodeError
from penstock.wire.sse import Event
from penstock.wire.terminator import Terminator

TERMINATOR = Terminator(
    data="[DONE]",
    event=("message_stop", "response.completed", "response.incomplete"),
    error=("error", "response.failed", "response.cancelled"),
    ping=("ping", "keepalive", "response.keep_alive"),
    payload="type",
)
"""How a chat stream ends and fails, whichever it is: before it begins nobody knows."""

_ANTHROPIC = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    }
)


class Chat:
    """One chat stream's text.

    Attributes:
        url: Where it comes from, for messages.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._known = False

    def text(self, event: Event) -> str:
        """The text that an event adds to the answer, "" where it adds none.

        Raises:
            DecodeError: The first event that says anything is none of a chat's; or one of its pieces is no JSON, so
                that text may be missing.
        """
        try:
            found = _text(event)
        except (ValueError, RecursionError) as error:
            if self._known and _is_piece(event):
                raise DecodeError(
                    f"{self.url}: a piece of the chat is no JSON ({error}), and its text is missing: "
                    f"{_beginning(event)!r}; leave --text out to see its events",
                    url=self.url,
                ) from None
            found = None
        if found is None and not self._known and TERMINATOR.judge(event) != "ping":
            raise DecodeError(
                f"{self.url}: this is no chat stream that --text knows (OpenAI, Anthropic): it has an event of type "
                f"{event.type!r} with {_beginning(event)!r}; leave --text out to see its events",
                url=self.url,
            )
        self._known = self._known or found is not None
        return found or ""


def _text(event: Event) -> str | None:
    """The text that an event adds; None where it is no event of a chat.

    Raises:
        ValueError, RecursionError: Its data is no JSON.
    """
    if event.data.strip() == TERMINATOR.data:
        return ""
    value = json.loads(event.data)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("choices"), list):
        return "".join(_choice(choice) for choice in value["choices"] if isinstance(choice, dict))
    type_ = str(value.get("type", event.type))
    if type_.startswith("response."):
        return _string(value, "delta") if type_ == "response.output_text.delta" else ""
    if type_ in _ANTHROPIC:
        block = value.get("delta" if type_ == "content_block_delta" else "content_block")
        return _string(block, "text") if isinstance(block, dict) else ""
    return None


def _is_piece(event: Event) -> bool:
    """Whether a chat's text may be in it: not in a ping, nor in an event of a kind that no chat has."""
    if not event.data.strip() or TERMINATOR.judge(event) == "ping":
        return False
    return event.type == "message" or event.type in _ANTHROPIC or event.type.startswith("response.")


def _beginning(event: Event) -> str:
    return " ".join(event.data[:80].split())


def _choice(choice: dict[str, Any]) -> str:
    """What the first of several answers is continued by; the others are answers of their own."""
    if choice.get("index", 0) != 0:
        return ""
    delta = choice.get("delta")
    return _string(delta, "content") if isinstance(delta, dict) else _string(choice, "text")


def _string(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""
