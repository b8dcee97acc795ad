"""What others measure with: spans and histograms of OpenTelemetry's, counters and histograms of Prometheus'.

attempt        one attempt, watched to the end of its body
opentelemetry  Tracing: a middleware; needs ``penstock[opentelemetry]``
prometheus     Collector: read at each scrape, and a middleware; needs ``penstock[prometheus]``

Neither library is imported before its module here is. All is done once per attempt, or once per scrape; nothing once
per chunk or event.
"""
