"""Running a statement in a session, whichever of the two kinds it is."""

from typing import Any

from sqlalchemy import Executable

from db import AsyncSession, Session
from db.threads import in_thread

AnySession = AsyncSession | Session


async def execute(session: AnySession, statement: Executable, parameters: Any = None) -> Any:
    """Run it; its result. A sequence of parameters is many rows."""
    if isinstance(session, AsyncSession):
        return await session.execute(statement, parameters)
    return await in_thread(session.execute, statement, parameters)
