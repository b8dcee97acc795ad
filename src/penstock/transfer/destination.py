"""Where the bytes go: a multipart upload, or a request's raw body."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.client.body import Body, boundary
from penstock.client.body import Form as FormBody
from penstock.client.builder import RequestBuilder
from penstock.client.client import AsyncClient
from penstock.wire import multipart


@dataclass(frozen=True, slots=True)
class Multipart:
    """A multipart form with the bytes as its file.

    Attributes:
        url: Where to.
        field: The file's field name.
        filename: The name that the receiver sees; None takes the source's.
        form: Further fields, sent before the file.
        headers: Sent with the request.
    """

    url: str
    field: str = "file"
    filename: str | None = None
    form: Mapping[str, str] = dataclasses.field(default_factory=dict)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def request(self, client: AsyncClient, filename: str, body: Body) -> RequestBuilder:
        """The upload of a body, described."""
        parts: list[multipart.Field | multipart.File] = [
            multipart.Field(name, value) for name, value in self.form.items()
        ]
        media_type = body.content_type or "application/octet-stream"
        parts.append(multipart.File(self.field, self.filename or filename, content_type=media_type, length=body.length))
        form = FormBody(multipart.Form(parts, boundary=boundary()), (*(None for _ in self.form), body))
        return client.post(self.url).headers(self.headers).body(form)


@dataclass(frozen=True, slots=True)
class Put:
    """The bytes as the raw body of a PUT.

    Attributes:
        url: Where to.
        headers: Sent with the request.
    """

    url: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def request(self, client: AsyncClient, filename: str, body: Body) -> RequestBuilder:
        """The upload of a body, described; the URL names it, so the filename is not needed."""
        return client.put(self.url).headers(self.headers).body(body)
