"""Pure decisions about failure: what it was, whether to try again, when, and whether to try at all.

backoff    how long to wait before a retry
reconnect  how long to wait between two connections of an event stream
classify   what an error says about the request and about the server
retry      try again, after how long, or stop
budget     whether all retries together are still few enough
breaker    whether to try at all
circuits   a breaker's circuits, one per origin, and when one is forgotten
window     how often something happened lately

Nothing here sleeps, reads a clock or draws a random number: instants and draws come in as arguments, decisions go
out as values. That is what lets the tests replay any history. Instants are monotonic; where one goes back all the same,
nothing is refused for longer than two windows or one timeout.
"""
