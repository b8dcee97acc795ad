"""Streams that outlive their readers.

streams     those of one relay: claimed, started, stopped, drained
session     the producing side of one, from before its head to its one end
source      what a session runs: the upstream's answer; generator: one's own
feed        bytes made into records
marks       the ids that blocks carry, and how a reader hands one back; theirs: ids of the upstream's
head        record 0: what any replica can answer with
ends        how a stream ended, and how that is said in its dialect
store_breaker   who asks while the store is down is not kept waiting
"""
