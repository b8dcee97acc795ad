"""What the log in Redis stores, and the scripts that store it: keys, batches, and what is known of a stream.

All keys of a **bucket** have the same hash tag: they are in one slot of a cluster, and one script can touch them all.
A stream's bucket is told by its id, a key's by the key; the id of a stream with a key is drawn until both are the same.
The tags are chosen so that bucket *n* of 16 lies in the *n*-th sixteenth of the slots: a cluster whose nodes have equal
parts of them has equal parts of the buckets. `lua/common.lua` lists the keys.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from penstock.eventlog.base import End, Reason, State

VERSION = 1
TAGS = ("u0", "qp", "dj", "wz", "d2", "pv", "uh", "iy", "ly", "h9", "uv", "q6", "9s", "qn", "dt", "ha")
BUCKETS = len(TAGS)

KEEP = 24 * 3600
"""Seconds after which Redis forgets a stream that runs, if nobody says that it is to be kept."""

_LUA = Path(__file__).with_name("lua")
_HEADER = struct.Struct(">QI")  # where the batch ends, and how many records it has; read.lua reads them too


class Script:
    """A script that runs in Redis.

    Attributes:
        text: It, with what all have in common before it.
        sha: By which Redis knows it once it was sent.
    """

    def __init__(self, name: str) -> None:
        self.text = (_LUA / "common.lua").read_bytes() + (_LUA / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


OPEN, APPEND, READ, LOOK, SETTLE, STOP, REPORT, LIST, CENSUS, OLDEST, EVICT, KEEP_RUNNING = map(
    Script, ("open", "append", "read", "look", "settle", "stop", "report", "list", "census", "oldest", "evict", "keep")
)


def base_of(prefix: str, bucket: int) -> str:
    """What all keys of a bucket begin with."""
    return f"{prefix}:{VERSION}:{{{TAGS[bucket]}}}"


def bucket_of(name: str) -> int:
    """The bucket of an id, or of an owner's key by `name_of`."""
    return zlib.crc32(name.encode()) % BUCKETS


def name_of(owner: str, key: str) -> str:
    """What tells a key's bucket."""
    return f"{len(owner)}:{owner}:{key}"


def id_in(bucket: int, new_id: Callable[[], str]) -> str:
    """A name of a bucket; one in sixteen is, so a few microseconds are spent on drawing."""
    while bucket_of(name := new_id()) != bucket:
        pass
    return name


# -- batches -----------------------------------------------------------------------------------------------------------


def pack(records: Sequence[bytes], end_offset: int) -> bytes:
    """A batch, as it is stored: where it ends, how many records it has, their sizes unless it is one, and they.

    Its first sequence is that of its last, which is in its entry's id, less the number of the others.
    """
    count = len(records)
    if count == 1:
        return _HEADER.pack(end_offset, 1) + records[0]
    sizes = array("I", map(len, records))
    if _BIG_ENDIAN:
        sizes.byteswap()
    return b"".join((_HEADER.pack(end_offset, count), sizes.tobytes(), *records))


def unpack(batch: bytes) -> tuple[int, list[bytes]]:
    """Where a batch ends [bytes], and its records."""
    end_offset, count = _HEADER.unpack_from(batch)
    begin = _HEADER.size
    if count == 1:
        return end_offset, [batch[begin:]]
    sizes = array("I", batch[begin : begin + 4 * count])
    if _BIG_ENDIAN:
        sizes.byteswap()
    begin += 4 * count
    records = []
    for size in sizes:
        records.append(batch[begin : begin + size])
        begin += size
    return end_offset, records


_BIG_ENDIAN = array("I", [1]).tobytes()[:1] == b"\0"


class Entry(NamedTuple):
    """An entry of a stream in Redis.

    Attributes:
        sequence: The second half of its id: a batch's last, 0 for the start, the end's own.
        kind: b"b" for a batch, b"s" for the start, b"e" for the end.
        value: The batch; "=" or "+" and the final head; the end's reason.
        more: Of the end: detail and offset.
    """

    sequence: int
    kind: bytes
    value: bytes
    more: Sequence[bytes]

    @classmethod
    def of(cls, entry: Sequence[Any]) -> Entry:
        """The entry of an answer."""
        position, fields = entry
        return cls(int(position.partition(b"-")[2]), fields[0], fields[1], fields[3::2])

    @property
    def end(self) -> End:
        """The end that it is."""
        return End(cast("Reason", self.value.decode()), self.more[0], self.sequence, int(self.more[1]))


# -- what is known of a stream -----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What is known of a stream; `lua/open.lua` has the fields."""

    id: str
    owner: str
    key: str | None
    epoch: int
    lease: str
    head: bytes
    started: bool
    last: int
    offset: int
    dropped: int
    dropped_offset: int
    opened_at: float
    end: End | None
    ended_at: float | None
    stop: bool

    @classmethod
    def of(cls, id: str, answer: Sequence[bytes]) -> Row | None:
        """The row of an answer to HGETALL; None where there is no stream, or too little of one."""
        known: Mapping[bytes, bytes] = dict(zip(answer[::2], answer[1::2], strict=True))
        if b"lease" not in known:
            return None
        last, offset = int(known[b"last"]), int(known[b"offset"])
        reason = known.get(b"reason")
        key = known.get(b"key")
        return cls(
            id=id,
            owner=known[b"owner"].decode(),
            key=None if key is None else key.decode(),
            epoch=int(known[b"epoch"]),
            lease=known[b"lease"].decode(),
            head=known[b"head"],
            started=b"started" in known,
            last=last,
            offset=offset,
            dropped=int(known[b"dropped"]),
            dropped_offset=int(known[b"dropped_offset"]),
            opened_at=int(known[b"opened"]) / 1_000_000,
            end=None if reason is None else End(cast("Reason", reason.decode()), known[b"detail"], last + 1, offset),
            ended_at=None if reason is None else int(known[b"ended"]) / 1000,
            stop=b"stop" in known,
        )

    @property
    def state(self) -> State:
        """How far it is."""
        if self.end is not None:
            return State.ENDED
        return State.RUNNING if self.started else State.STARTING
