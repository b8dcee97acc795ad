"""The ids that the relay gives to the blocks of an event stream, and how a reader hands one back.

``id: 1Zm9v…YmFy.2-1532`` names the relay's version of ids, the stream, its epoch (one per producer) and the sequence of
the record. It is opaque to readers; what they send back as Last-Event-ID is parsed here and nowhere else.

A block gets one only if it has data: an id before a block without data is what the OpenAI SDK stumbles over, and what
would move the place of a reader to where nothing was. An id of the upstream's own is taken out, for the later one wins.
"""

from __future__ import annotations

import re
from typing import NamedTuple

VERSION = "1"
BOM = b"\xef\xbb\xbf"

LOST = 10**15 - 1
"""The sequence in the id of a lost stream's end. The end's own may be that of a record which was sent and not stored;
this one no record has, so that whoever hands it back has been told."""

_TOKEN = re.compile(r"1([A-Za-z0-9_-]{22})\.([0-9]{1,9})-([0-9]{1,15})")
_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_DATA = re.compile(rb"[\r\n]data[:\r\n]")
_OWN_ID = re.compile(rb"(?:^|[\r\n])id[:\r\n]")
_OURS = re.compile(rb"(?:^|[\r\n])id: ?1[A-Za-z0-9_-]{22}\.[0-9]{1,9}-[0-9]{1,15}[\r\n]")
_TYPE = re.compile(rb"(?:^|[\r\n])event[:\r\n]")
_LINES = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class Place(NamedTuple):
    """Where a reader stands.

    Attributes:
        stream: The stream's id.
        epoch: Its producer's.
        sequence: Of the last record that the reader has.
    """

    stream: str
    epoch: int
    sequence: int

    @classmethod
    def parse(cls, token: str) -> Place | None:
        """The place that an id names; None for an id that is not ours."""
        match = _TOKEN.fullmatch(token)
        return None if match is None else cls(match[1], int(match[2]), int(match[3]))

    def __str__(self) -> str:
        return f"{VERSION}{self.stream}.{self.epoch}-{self.sequence}"


def is_stream_id(text: str) -> bool:
    """Whether it has a stream id's form."""
    return _ID.fullmatch(text) is not None


def id_line(stream: str, epoch: int) -> bytes:
    """The beginning of the id lines of a stream's records; a sequence and LF complete one."""
    return f"id: {VERSION}{stream}.{epoch}-".encode()


def has_data(block: bytes) -> bool:
    """Whether a block dispatches an event."""
    return block.startswith((b"data:", b"data\n", b"data\r")) or (b"data" in block and _DATA.search(block) is not None)


def has_id(block: bytes) -> bool:
    """Whether a block has an id of its own."""
    # The search is slow, and two letters are in most blocks; at the beginning of a line they are in few.
    return (b"\nid" in block or b"\rid" in block or block.startswith(b"id")) and _OWN_ID.search(block) is not None


def has_id_of_ours(block: bytes) -> bool:
    """Whether its id is one that a relay gave: another one, behind us."""
    return _OURS.search(block) is not None


def without_blank(block: bytes) -> bytes:
    """A block without data as mere lines, which dispatch nothing either.

    Behind an id, the OpenAI SDK takes any blank line for the end of an event, and such comments are what some
    providers keep a connection alive with.
    """
    if _TYPE.search(block):
        return block  # its blank line drops the type, too
    return b"".join(line for line in _LINES.findall(block) if line.strip(b"\r\n")) or b":\n"


def without_id(block: bytes) -> bytes:
    """The block less its id lines."""
    lines = _LINES.findall(block)
    return b"".join(line for line in lines if not (line.startswith(b"id:") or line.rstrip(b"\r\n") == b"id"))
