"""TCP ports for servers that may go away and come back."""

import random
import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that systems hand out for outgoing connections.

    One of those could be taken by any client while the server is down, even by the client that tries to
    reach it: it would be connected to itself.
    """
    while True:
        port = random.randrange(10_240, 32_768)  # noqa: S311 - not a secret
        with socket.socket() as probe:
            # As servers do: a port that only has connections of a server that is gone is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
