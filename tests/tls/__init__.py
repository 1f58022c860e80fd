"""TLS in front of a server that has none: a proxy that ends it, with a certificate that protects nothing but tests."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.addresses import in_front_of

CERTIFICATE, KEY = (Path(__file__).with_name(name) for name in ("certificate.pem", "key.pem"))
"""For localhost and 127.0.0.1, signed by itself, for a hundred years."""


@asynccontextmanager
async def in_tls(url: str) -> AsyncIterator[str]:
    """The URL of a server, behind TLS, without saying whom to trust: ``rediss://...`` for a Redis.

    PostgreSQL's clients need ``sslnegotiation=direct``, as nobody here answers their question whether TLS is there.
    """
    front = in_front_of(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE, KEY)
    context.set_alpn_protocols(["postgresql"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await front.connect()
        try:
            await asyncio.gather(_pass(reader, server_writer), _pass(server_reader, writer))
        except OSError:
            pass
        finally:
            for end in (writer, server_writer):
                end.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", front.port, ssl=context)
    async with server:
        yield front.url.replace("redis://", "rediss://")


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()
