"""Stopping what a synchronous driver's connection is doing, from another thread."""

import os
import socket
from contextlib import suppress
from typing import Any


def interrupt(driver_connection: Any, timeout: float) -> None:
    """Ask the database to end the statement in flight, whose thread then gets an error; `timeout` is in seconds."""
    if hasattr(driver_connection, "cancel_safe"):  # psycopg
        with suppress(Exception):  # a server that does not hear it cannot end the statement either
            driver_connection.cancel_safe(timeout=timeout)
    elif hasattr(driver_connection, "interrupt"):  # sqlite3
        driver_connection.interrupt()


def disconnect(driver_connection: Any) -> None:
    """End the network connection below the driver, whose thread would else wait for ever for a server that is gone."""
    # On a copy of the file descriptor: the driver still has to close its own.
    with suppress(Exception), socket.socket(fileno=os.dup(driver_connection.fileno())) as network:
        network.shutdown(socket.SHUT_RDWR)
