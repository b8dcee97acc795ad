"""The measurements behind the README's figures: `make bench`, or `python -m bench`.

__main__   the command line
plan       how much of everything
processes  peers as processes: started, watched and ended by their own pids
build      the Go peers, what is installed, and the machine
results    what was measured, and the ratios
relay      through a gateway: CPU per event, added delay, memory per idle stream, one large body
fanout     one stream to many readers: delay, CPU per event delivered, memory per idle reader
log        the event log by what keeps it: CPU per event, events per second, replay, delay between processes
stores     what keeps it: memory, SQLite, Redis
consume    in one Python process: CPU per event, paced and flat out
pipe       a download into an upload: wall, CPU per GB, peak memory
decode     bytes to events, without a network
table      the results as text
goals      what has to be reached
peers/     what is measured against, and the origin and the readers that measure it
"""
