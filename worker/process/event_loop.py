"""Which event loop a worker runs on: uvloop's, where uvloop can be imported."""

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of the best kind there is."""
    try:
        import uvloop  # noqa: PLC0415 - it may be missing: there is none for Windows
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
