"""What others measure with: spans and histograms of OpenTelemetry's, counters and histograms of Prometheus'.

attempt        one attempt, watched to the end of its body
relayed        what is read of a relay
opentelemetry  Tracing: a middleware; instrument_relay; needs ``penstock[opentelemetry]``
prometheus     Collector: read at each scrape, and a middleware; needs ``penstock[prometheus]``

Neither library is imported before its module here is. All is done once per request, attempt or stream, or once per
scrape; nothing once per chunk or event.
"""
