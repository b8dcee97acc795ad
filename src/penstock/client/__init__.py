"""The client: a request described by a frozen builder, one terminal verb that does the I/O, a body that is streamed.

settings    Timeout and Limits
body        what a request carries, with its length where that is known
seam        httpx2's exceptions and URLs into ours: the only file that knows their names
request     one request as it goes out, and what a middleware sees of it
response    one response as it comes in, and its one end
middleware  logging, a concurrency limit, progress
metrics     what a stream and a client have seen
exchange    attempts: breaker, retry, redirects, timers
stream      a response's items, through failures
builder     the fluent face
client      AsyncClient
"""
