"""The relay: a reader's request goes to the upstream, each chunk of the answer to the reader as it comes.

app         Relay: the gateway as an ASGI app, and `forward` for one's own routes
exchange    one request through the relay, from its first byte to its one end
upstream    what is asked of the upstream, and what its failures mean to the reader
downstream  the reader: its request body, its departure, the answer
headers     which fields go on, in either direction
"""
