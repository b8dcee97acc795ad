"""The command line: one file per command.

main      the app, and how every command ends: its exit code, and one line for every failure
output    what goes where: data to stdout, all else to stderr; or one JSON object per line
options   how values of options are read
run       a coroutine run to its end, or to a signal's
body      a request's body, from an option
progress  a bar, for a terminal
stdin     stdin, read in the event loop
stdout    stdout, written in the event loop
"""
