"""Streams that outlive their readers: opaque records under a cursor, one producer, one end.

base     the contract: streams, cursors, leases, ends
reader   a cursor that is attached: it reads, and at the tail it is told
followed   a stream whose followers are told; live: one that is produced in this process
batch    what the stores share: records as one piece of bytes
memory   the log in memory, bounded
sqlite/  the log in a file, for the workers of one machine
redis/   the log in Redis, for the replicas on many
"""
