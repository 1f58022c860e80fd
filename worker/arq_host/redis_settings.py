"""`url_of`: arq's ``RedisSettings`` as a URL for ``REDIS_URL``."""

from typing import Any
from urllib.parse import quote, urlencode

from arq.connections import RedisSettings

from worker.broker.redis_url import SENTINEL
from worker.errors import ConfigError

_DEFAULTS = RedisSettings()
_TLS_OPTIONS = (
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_check_hostname",
)
_REPEATING = ("retry_on_timeout", "retry_on_error", "retry")


def url_of(settings: RedisSettings) -> str:
    """The URL of these servers, with the login and the options.

    Raises:
        ConfigError: a setting has no place in a URL. The message names it.
    """
    for name in _REPEATING:
        if getattr(settings, name):
            raise ConfigError(
                f"{name} of redis_settings: a command whose answer is late may have been run, so Tandem decides itself "
                "what it sends again: leave it out"
            )
    login = _login(settings)
    options: dict[str, Any] = {name: getattr(settings, name) for name in _changed(settings, "max_connections")}
    if settings.unix_socket_path is not None:
        return f"unix://{login}{quote(settings.unix_socket_path)}{_query(options | {'db': settings.database})}"
    if settings.conn_timeout != _DEFAULTS.conn_timeout:
        options["socket_connect_timeout"] = settings.conn_timeout
    if settings.sentinel:
        return _sentinel_url(settings, login, options)
    if not isinstance(settings.host, str):
        raise ConfigError(
            "host of redis_settings is a list, but sentinel is False: name one host, or set sentinel=True"
        )
    if settings.ssl:
        options |= {name: getattr(settings, name) for name in _changed(settings, *_TLS_OPTIONS)}
    scheme = "rediss" if settings.ssl else "redis"
    return f"{scheme}://{login}{_host(settings.host)}:{settings.port}/{settings.database}{_query(options)}"


def connect_wait_of(settings: RedisSettings) -> float | None:
    """Seconds for which arq would try to connect. None if the project has not said so."""
    if not [*_changed(settings, "conn_retries", "conn_retry_delay")]:
        return None
    return float(settings.conn_retries * (settings.conn_retry_delay + settings.conn_timeout))


def _sentinel_url(settings: RedisSettings, login: str, options: dict[str, Any]) -> str:
    if settings.ssl:
        raise ConfigError("ssl of redis_settings: Tandem has no TLS with Sentinels: use a rediss:// URL of the primary")
    if isinstance(settings.host, str):
        raise ConfigError("host of redis_settings is one host, but sentinel is True: give a list of (host, port)")
    hosts = ",".join(f"{_host(host)}:{port}" for host, port in settings.host)
    return f"{SENTINEL}{login}{hosts}/{quote(settings.sentinel_master)}/{settings.database}{_query(options)}"


def _login(settings: RedisSettings) -> str:
    if not settings.username and not settings.password:
        return ""
    password = f":{quote(settings.password, safe='')}" if settings.password else ""
    return f"{quote(settings.username or '', safe='')}{password}@"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _changed(settings: RedisSettings, *names: str) -> tuple[str, ...]:
    """Those of the settings that do not have arq's default."""
    return tuple(name for name in names if getattr(settings, name) != getattr(_DEFAULTS, name))


def _query(options: dict[str, Any]) -> str:
    return f"?{urlencode(options, quote_via=quote)}" if options else ""
