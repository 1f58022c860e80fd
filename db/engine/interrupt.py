"""Stop the statement of a synchronous driver from another thread."""

import os
import socket
from contextlib import suppress
from typing import Any


def interrupt(driver_connection: Any, timeout: float) -> None:
    """Ask the database to end the statement in flight. Its thread then gets an error. `timeout` is in seconds."""
    if hasattr(driver_connection, "cancel_safe"):  # psycopg
        with suppress(Exception):  # a server that is out of reach cannot end the statement either
            driver_connection.cancel_safe(timeout=timeout)
    elif hasattr(driver_connection, "interrupt"):  # sqlite3
        driver_connection.interrupt()


def disconnect(driver_connection: Any) -> None:
    """Shut the driver's socket down. Its thread would otherwise wait for ever for a server that is gone."""
    # On a copy of the file descriptor, as the driver still closes its own.
    with suppress(Exception), socket.socket(fileno=os.dup(driver_connection.fileno())) as network:
        network.shutdown(socket.SHUT_RDWR)
