"""For whoever runs the relay.

admin       the page, the list of streams, and what stops one
metrics     what Prometheus reads
page/       static files that speak HTTP only
"""
