"""TCP ports for servers that may go away and come back."""

import random
import socket

HIGHEST = 32_767
"""Systems hand out the ports above it for outgoing connections."""


def free_port(*, beside: int = 0) -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that systems hand out for outgoing connections.

    One of those could be taken by any client while the server is down, even by the client that tries to
    reach it: it would be connected to itself.

    Args:
        beside: the distance to a second port that the server will listen on, of which all of this holds, too.
    """
    while True:
        port = random.randrange(10_240, HIGHEST + 1 - beside)  # noqa: S311 - not a secret
        if _is_free(port) and _is_free(port + beside):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port that only has connections of a server that is gone is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
