"""An HTTP/1.1 client core on asyncio's protocols and llhttp.

framing     the head of a response read, and where its body ends
connection  one connection: an exchange at a time, flow control both ways, timers that are fair
pool        idle connections per origin, and new ones
dial        a socket to a host: happy eyeballs, TLS, Unix sockets
flag        an event that is small while nobody waits for it
transport   all of it as an httpx2 transport
"""
