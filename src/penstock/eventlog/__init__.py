"""Streams that outlive their readers: opaque records under a cursor, one producer, one end.

base    the contract: streams, cursors, leases, ends
reader  a cursor that is attached: it reads, and at the tail it is told
live    what is the same for every stream that is produced in this process
memory  the log in memory, bounded
sqlite  the log in a file, for the workers of one machine
redis   the log in Redis, for relays on many machines
"""
