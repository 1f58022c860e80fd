"""``Redis``: run scripts for the keeper, which is too small to import redis-py.

1. Each call opens and closes its own connection: calls are rare, and an idle connection could have gone stale.
2. A call has one time limit for all its waits except the name server's answer. So a Redis that drops packets delays the
   call no longer than that limit.
3. Each call asks the Sentinels for the primary. In a cluster, the call follows the nodes' redirects.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import hiredis

_MAX_REDIRECTS = 5  # from node to node of a cluster
_CHUNK = 65536  # bytes

Server = Mapping[str, Any]
"""The address and login of one server: see `worker.keeper.servers`."""


class RefusedError(Exception):
    """The server answers with an error."""


class Redis:
    """Runs scripts on Redis.

    Args:
        servers: see `worker.keeper.servers.servers_of`.
        timeout: seconds that a call may take at each server.
    """

    def __init__(self, servers: Mapping[str, Any], timeout: float) -> None:
        self._servers = servers
        self._timeout = timeout

    def run(self, script: str, key: str, arguments: Sequence[str | bytes | int]) -> Any:
        """Run a script on one key.

        Raises:
            RefusedError: the server answers with an error.
            OSError: no server answers.
        """
        command = ("EVAL", script, 1, key, *arguments)
        if nodes := self._servers.get("nodes"):
            return self._run_in_cluster(nodes, command)
        return self._call(self._primary(), command)

    def _call(self, server: Server, command: Sequence[Any]) -> Any:
        with _Connection(server, self._timeout) as connection:
            return connection.call(*command)

    def _primary(self) -> Server:
        server: Server = self._servers["server"]
        if sentinels := self._servers.get("sentinels"):
            host, port = self._first_answer(
                sentinels, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._servers["service"])
            )
            return {**server, "host": host.decode(), "port": int(port)}
        return server

    def _run_in_cluster(self, nodes: Sequence[Server], command: Sequence[Any]) -> Any:
        candidates: Sequence[Server] = nodes
        for _ in range(_MAX_REDIRECTS):
            try:
                return self._first_answer(candidates, command)
            except RefusedError as error:
                words = str(error).split()
                if words[0] != "MOVED":
                    raise
                host, _, port = words[2].rpartition(":")
                candidates = [{**candidates[0], "host": host or candidates[0]["host"], "port": int(port)}]
        raise OSError(f"the nodes of the cluster redirected the call {_MAX_REDIRECTS} times")

    def _first_answer(self, servers: Sequence[Server], command: Sequence[Any]) -> Any:
        failed: OSError | None = None
        for server in servers:
            try:
                reply = self._call(server, command)
            except OSError as error:
                failed = error
                continue
            if reply is not None:
                return reply
        raise failed or OSError("no Sentinel knows the primary")


class _Connection:
    """A connection to one server, open inside a `with` block."""

    def __init__(self, server: Server, timeout: float) -> None:
        self._server = server
        self._end = time.monotonic() + timeout
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        server = self._server
        self._socket = self._open(server)
        try:
            if server.get("password"):
                self.call("AUTH", *([server["username"]] if server.get("username") else []), server["password"])
            if server.get("db"):
                self.call("SELECT", server["db"])
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, *command: Any) -> Any:
        """Send a command and return the reply."""
        self._limit_wait()
        self._socket.sendall(hiredis.pack_command(command))
        while (reply := self._reader.gets()) is False:
            self._limit_wait()
            if not (chunk := self._socket.recv(_CHUNK)):
                raise ConnectionResetError("the server has closed the connection")
            self._reader.feed(chunk)
        if isinstance(reply, hiredis.ReplyError):
            raise RefusedError(str(reply))
        return reply

    def _open(self, server: Server) -> socket.socket:
        if server.get("path"):
            opened = socket.socket(socket.AF_UNIX)
            opened.settimeout(self._left())
            opened.connect(server["path"])
            return opened
        opened = socket.create_connection((server["host"], int(server["port"])), self._left())
        return _encrypted(opened, server) if server.get("tls") else opened

    def _limit_wait(self) -> None:
        self._socket.settimeout(self._left())

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server did not answer in time")
        return left


def _encrypted(plain: socket.socket, server: Server) -> socket.socket:
    """Start TLS as redis-py does (redis 5.3, ``connection.py``: `_wrap_socket_with_ssl`)."""
    import ssl  # noqa: PLC0415 - it costs five megabytes, and few need it

    tls = server["tls"]
    context = ssl.create_default_context()
    context.check_hostname = bool(tls["check_hostname"])
    context.verify_mode = ssl.VerifyMode(tls["cert_reqs"])
    if tls["certfile"] or tls["keyfile"]:
        context.load_cert_chain(tls["certfile"], tls["keyfile"], tls["certificate_password"])
    if tls["ca_certs"] or tls["ca_path"] or tls["ca_data"]:
        context.load_verify_locations(tls["ca_certs"], tls["ca_path"], tls["ca_data"])
    if tls["ssl_min_version"]:
        context.minimum_version = ssl.TLSVersion(tls["ssl_min_version"])
    if tls["ssl_ciphers"]:
        context.set_ciphers(tls["ssl_ciphers"])
    try:
        return context.wrap_socket(plain, server_hostname=server["host"])
    except BaseException:
        plain.close()
        raise
