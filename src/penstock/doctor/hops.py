"""Who stands on the way, by the header fields that they leave.

Many leave none: HAProxy and most load balancers are silent, and a proxy may put its own name in the place of the
server's. So this is a guess, and an empty one means that nobody gave a name.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Software = str

_BY_VALUE: tuple[tuple[str, str, Software], ...] = (
    # field, what its value holds, software
    ("server", r"\bcloudflare\b", "cloudflare"),
    ("server", r"\bcloudfront\b", "cloudfront"),
    ("server", r"\b(awselb|amazon)", "aws"),
    ("server", r"\b(vercel)\b", "vercel"),
    ("server", r"\b(google frontend|gws)\b", "google"),
    ("server", r"\bmicrosoft-azure", "azure"),
    ("server", r"\b(nginx|openresty|tengine)\b", "nginx"),
    ("server", r"\bcaddy\b", "caddy"),
    ("server", r"\bhaproxy\b", "haproxy"),
    ("server", r"\bapache\b", "apache"),
    ("server", r"\benvoy\b", "envoy"),
    ("server", r"\b(fly/|fly\.io)", "fly"),
    ("server", r"\bheroku\b", "heroku"),
    ("server", r"\b(uvicorn|hypercorn|granian|daphne)\b", "asgi"),
    ("server", r"\bgunicorn\b", "gunicorn"),
    ("server", r"\b(gunicorn|werkzeug|waitress|wsgiserver|cheroot)\b", "wsgi"),
    ("via", r"\bcloudfront\b", "cloudfront"),
    ("via", r"\bcaddy\b", "caddy"),
    ("via", r"\bvarnish\b", "varnish"),
    ("via", r"\bfly\.io\b", "fly"),
    ("via", r"\b(heroku|vegur)\b", "heroku"),
    ("via", r"\bgoogle\b", "google"),
    ("via", r"\bnginx\b", "nginx"),
    ("via", r"\bhaproxy\b", "haproxy"),
    ("via", r"\btraefik\b", "traefik"),
    ("x-powered-by", r"\bnext\.js\b", "nextjs"),
    ("x-powered-by", r"\bexpress\b", "express"),
)

_BY_PRESENCE: tuple[tuple[str, Software], ...] = (
    ("cf-ray", "cloudflare"),
    ("x-amz-cf-id", "cloudfront"),
    ("x-amz-apigw-id", "aws"),
    ("x-amzn-requestid", "aws"),
    ("x-vercel-id", "vercel"),
    ("x-served-by", "varnish"),
    ("x-varnish", "varnish"),
    ("x-azure-ref", "azure"),
    ("fly-request-id", "fly"),
    ("x-envoy-upstream-service-time", "envoy"),
    ("x-nextjs-cache", "nextjs"),
)

NAMES: dict[Software, str] = {
    "apache": "Apache",
    "asgi": "the ASGI server",
    "aws": "AWS",
    "azure": "Azure",
    "caddy": "Caddy",
    "cloudflare": "Cloudflare",
    "cloudfront": "CloudFront",
    "envoy": "Envoy",
    "express": "Express",
    "fly": "Fly.io",
    "google": "Google's load balancer",
    "gunicorn": "Gunicorn",
    "haproxy": "HAProxy",
    "heroku": "Heroku's router",
    "nextjs": "Next.js",
    "nginx": "nginx",
    "traefik": "Traefik",
    "varnish": "Varnish",
    "vercel": "Vercel",
    "wsgi": "the WSGI server",
}

_SERVERS = frozenset({"asgi", "wsgi", "gunicorn", "express", "nextjs"})


def hops(headers: Sequence[tuple[str, str]]) -> tuple[Software, ...]:
    """Guess who handled an answer, in no order that means anything.

    Args:
        headers: The answer's fields, names in lower case.
    """
    found: list[Software] = []
    for field, pattern, software in _BY_VALUE:
        if any(name == field and re.search(pattern, value[:200], re.IGNORECASE) for name, value in headers):
            found.append(software)
    present = {name for name, _ in headers}
    found += [software for field, software in _BY_PRESENCE if field in present]
    return tuple(dict.fromkeys(found))


def proxies(found: Sequence[Software]) -> tuple[Software, ...]:
    """Those that stand before a server, and are none themselves."""
    return tuple(software for software in found if software not in _SERVERS)


def named(found: Sequence[Software], otherwise: str) -> str:
    """The names, for a sentence."""
    names = [NAMES[software] for software in found]
    return " or ".join(names) if names else otherwise
