"""TCP ports for servers that may be stopped and started again."""

import random
import socket

HIGHEST = 32_767
"""The system uses the ports above this one for outgoing connections."""


def free_port(*, beside: int = 0) -> int:
    """A free port of 127.0.0.1, below the ports that the system uses for outgoing connections.

    While the server is down, any client could get one of those ports for an outgoing connection. Even the client that
    tries to reach the server could, and would then be connected to itself.

    Args:
        beside: the distance to a second port that the server needs, which must be free and below those ports too.
    """
    while True:
        port = random.randrange(10_240, HIGHEST + 1 - beside)  # noqa: S311 - not a secret
        if _is_free(port) and _is_free(port + beside):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port that only has connections of a stopped server counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
