"""The reader's side.

reader      its request body, its departure, and the answer to it
answer      a stream as an answer: head, records, end
subscriber  a place in a stream, and a socket that may be slow
early       an answer that begins before the upstream's
handover    readers of a relay that drains, sent to another
"""
