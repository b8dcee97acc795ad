from __future__ import annotations

import pytest

from penstock.doctor.hops import NAMES, hops, named, proxies


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ()),
        ({"server": "nginx/1.22.1"}, ("nginx",)),
        ({"server": "openresty"}, ("nginx",)),
        ({"server": "Caddy", "via": "1.1 Caddy"}, ("caddy",)),
        ({"server": "cloudflare", "cf-ray": "1-FRA"}, ("cloudflare",)),
        ({"server": "uvicorn"}, ("asgi",)),
        ({"server": "gunicorn"}, ("gunicorn", "wsgi")),
        ({"server": "Apache/2.4 (Debian)", "x-powered-by": "Express"}, ("apache", "express")),
        ({"via": "1.1 abc.cloudfront.net (CloudFront)", "x-amz-cf-id": "x"}, ("cloudfront",)),
        ({"server": "envoy", "x-envoy-upstream-service-time": "3"}, ("envoy",)),
        ({"server": "my-enginxer"}, ()),
    ],
)
def test_who_is_on_the_way(headers: dict[str, str], expected: tuple[str, ...]) -> None:
    found = hops(list(headers.items()))
    assert found == expected
    assert all(software in NAMES for software in found)


def test_a_server_is_no_proxy() -> None:
    assert proxies(("nginx", "asgi", "express")) == ("nginx",)


def test_names_for_a_sentence() -> None:
    assert named((), "a hop") == "a hop"
    assert named(("nginx",), "a hop") == "nginx"
    assert named(("cloudflare", "nginx"), "a hop") == "Cloudflare or nginx"
