"""The log in Redis.

log      `RedisLog`: what is opened, looked for, listed, flushed and kept; open: the first of them
stream   a stream that is produced here; stored: one that is not
bucket   the lease of this process in one hash slot, and what it stores under it
tail     what it hears there; reports: what it tells; read: pages out of what Redis answers
keeper   what is seen to as time goes: leases, servers; sweep: retention
servers  connections, and the only place where redis-py is imported; address: what a URL names
scripts  the keys, and the scripts that touch them (lua/)
"""
