"""Bytes to values and values to bytes: everything here is pure.

Nothing in this room does I/O, waits, logs, or reads a clock; what it needs (a boundary, a last event id, a limit) comes
in as an argument. It imports nothing of Penstock but `penstock.errors`.

====================  ===================================================  ============================================
module                bytes to values                                      values to bytes
====================  ===================================================  ============================================
`wire.lines`          `Decoder`: lines, by CR, LF and CRLF or by LF alone
`wire.sse`            `Decoder`: events; `BlockCutter`: blocks as they     `encode`, `comment`
                      stand, for forwarding
`wire.ndjson`         `Decoder`: JSON values                               `encode`
`wire.multipart`                                                           `Form`: heads, tail and Content-Length
`wire.coding`         `Decoder`: gzip and deflate undone
`wire.headers`        `filename`, `media_type`, `end_to_end`               `attachment`, `check_header`
====================  ===================================================  ============================================

Every decoder keeps the same contract:

- ``feed(data)`` returns what the bytes completed, ``close()`` what the end of the body completes. How the bytes were
  split never changes the sequence of items, nor the error that ends it.
- A fault found after complete items does not swallow them: they are returned, and the error is raised by the next call.
  From then on every call raises that same error.
- What is buffered is bounded: past the limit comes `LimitExceeded`. The time spent is linear in the bytes fed, however
  they are split.
"""
