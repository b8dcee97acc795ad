"""Pure decisions about failure: what it was, whether to try again, when, and whether to try at all.

backoff    how long to wait before a retry
classify   what an error says about the request and about the server
retry      try again, after how long, or stop
breaker    whether to try at all

Nothing here sleeps, reads a clock or draws a random number: instants and draws come in as arguments, decisions go
out as values. That is what lets the tests replay any history.
"""
