"""The Redis servers as plain data, read from redis-py, so that worker and keeper reach the same Redis."""

from typing import Any

from redis.connection import SSLConnection
from redis.sentinel import SentinelConnectionPool

from worker.broker.connection import connect_sync
from worker.broker.redis_url import RedisAddress

_LOGIN = ("host", "port", "path", "db", "username", "password")
_TLS = (
    *("keyfile", "certfile", "certificate_password", "ca_certs", "ca_path", "ca_data"),
    *("cert_reqs", "check_hostname", "ssl_min_version", "ssl_ciphers"),
)


def servers_of(url: str) -> dict[str, Any]:
    """The ``server``, with the ``sentinels`` and their ``service`` if there are any; or the ``nodes`` of a cluster.

    This opens no connection. The result can be written as JSON.
    """
    address = RedisAddress.parse(url)
    if address.kind == "cluster":
        return {"nodes": [{"host": host, "port": port, **address.login} for host, port in address.hosts]}
    pool: Any = connect_sync(url).connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return {"server": _server(pool)}
    sentinels = [_server(sentinel.connection_pool) for sentinel in pool.sentinel_manager.sentinels]
    return {"server": _server(pool), "sentinels": sentinels, "service": pool.service_name}


def _server(pool: Any) -> dict[str, Any]:
    connection: Any = pool.make_connection()
    server = {name: getattr(connection, name, None) for name in _LOGIN}
    if isinstance(connection, SSLConnection):
        server["tls"] = {name: getattr(connection, name, None) for name in _TLS}
    return server
