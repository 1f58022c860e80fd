"""The carrier's API."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from httpx import AsyncClient


class Carrier:
    """Sends parcels."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def send(self, order_id: int) -> str:
        """Send a parcel, and return its number. The same order is sent once, however often this is called."""
        response = await self._client.put(f"/parcels/{order_id}")
        response.raise_for_status()
        number: str = response.json()["number"]
        return number


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, Any]]:
    """The resources of a worker."""
    async with AsyncClient(base_url=os.environ["SHOP_CARRIER"]) as client:
        yield {"carrier": Carrier(client)}
