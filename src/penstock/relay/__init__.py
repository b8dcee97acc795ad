"""The relay: a reader's request goes to the upstream, each chunk of the answer to the reader as it comes.

app          Relay: the gateway as an ASGI app
verbs        `forward`, `stream`, `resume` and `stop`, for routes of one's own
route        a policy at work: the client, the breaker and the limits of one upstream
gateway      one request: joined, resumed, or asked of the upstream and kept
resume       readers that come to a stream that is there already
public       health, readiness, the module for browsers
settings/    what is configured: policies, and the file they stand in
upstream/    what is asked of the upstream, and its answer where it is not kept
streams/     what outlives a request: sessions, what they make records of, how they end
downstream/  the reader: its request, its place in a stream, its answer
operator/    the page, the list and the metrics
"""
