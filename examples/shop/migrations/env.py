import asyncio
import os

from alembic import context
from shop.models import Base
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from worker.ledger.alembic import include_object


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, include_object=include_object)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
