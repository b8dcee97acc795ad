"""What happens to a stream on its way: measured, judged, and what mends it.

examine   which requests are made, in which order, and never one that would do something twice
probe     one request, listened to: when each piece came, and what was in it
rhythm    pure: bursts, silences, what caught up, from arrival times
stamps    pure: when an item says that it was sent
hops      pure: who stands on the way, by the header fields that they leave
diagnose  pure: probes in, findings out
remedies  data: the setting of each software that mends a finding
"""
