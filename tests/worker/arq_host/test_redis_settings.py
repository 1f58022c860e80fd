"""`url_of`: arq's `RedisSettings` as a URL, and back."""

from dataclasses import replace
from typing import Any

import pytest
from arq.connections import RedisSettings

from worker.arq_host.redis_settings import url_of
from worker.broker.redis_url import RedisAddress
from worker.errors import ConfigError
from worker.settings import redis_settings


@pytest.mark.parametrize(
    "settings",
    [
        RedisSettings(),
        RedisSettings("redis.example", 6380, database=3, username="us@er", password="p@ss/w:#rd"),
        RedisSettings("::1", password="secret"),
        RedisSettings(unix_socket_path="/run/redis socket", database=2, username="user", password="pw"),
        RedisSettings(
            "host", ssl=True, ssl_ca_certs="/c a.pem", ssl_cert_reqs="none", ssl_check_hostname=True, ssl_keyfile="/k"
        ),
        RedisSettings(
            [("one", 26379), ("two", 26380)],
            sentinel=True,
            sentinel_master="main",
            database=1,
            password="pw",
        ),
    ],
)
def test_the_url_means_the_same_settings(settings: RedisSettings) -> None:
    """Servers, logins, databases and TLS files."""
    url = url_of(settings)
    back = redis_settings(url)
    ours = ("port", "max_connections") if settings.sentinel else ("max_connections",)
    assert replace(back, **{name: getattr(settings, name) for name in ours}) == settings
    RedisAddress.parse(url)


def test_options_of_the_connections_are_in_the_url() -> None:
    """Those that differ from arq's defaults."""
    address = RedisAddress.parse(url_of(RedisSettings(conn_timeout=7, max_connections=5)))
    assert (address.options["socket_connect_timeout"], address.max_connections) == (7, 5)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"retry_on_timeout": True}, "retry_on_timeout of redis_settings: "),
        ({"retry_on_error": [OSError]}, "retry_on_error of redis_settings: "),
        ({"host": [("a", 1)]}, "host of redis_settings is a list, but sentinel is False"),
        ({"sentinel": True}, "host of redis_settings is one host, but sentinel is True"),
        (
            {"host": [("a", 1)], "sentinel": True, "ssl": True},
            "ssl of redis_settings: Tandem has no TLS with Sentinels",
        ),
    ],
)
def test_what_has_no_place_in_a_url_is_refused(settings: Any, line: str) -> None:
    """By its name."""
    with pytest.raises(ConfigError, match=f"^{line}"):
        url_of(RedisSettings(**settings))
