"""COMMITs that take as long as the test wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.servers import Observer
from tests.waiting import eventually

_HOLD = 1  # the advisory lock that COMMITs wait for


class HeldCommits:
    """The COMMITs that wait in the server; all of them end when the first one is let go."""

    def __init__(self, postgres: Observer) -> None:
        self._postgres = postgres
        self._held = False

    async def begun(self, timeout: float = 5) -> None:  # noqa: ASYNC109 - as in `eventually`
        """Wait until one is in the server."""
        await eventually(self._postgres.committing, timeout=timeout)

    async def let_go(self) -> None:
        """Let them end, and hold no others."""
        if self._held:
            self._held = False
            await self._postgres.execute(f"SELECT pg_advisory_unlock({_HOLD})")

    async def hold(self) -> None:
        """Let those that come from now on wait."""
        self._held = True
        await self._postgres.execute(f"SELECT pg_advisory_lock({_HOLD})")


@asynccontextmanager
async def held_commits(postgres: Observer, table: str, then: str = "RETURN NULL") -> AsyncIterator[HeldCommits]:
    """Hold each COMMIT that has inserted into `table`, in the server, until it is let go, or the block ends.

    Args:
        then: what the server does with such a COMMIT then, in PL/pgSQL.
    """
    await postgres.execute(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql "
        # Where a broken test, or broken code, never lets it go, it fails.
        "SET lock_timeout = '20s' AS "
        f"$$ BEGIN PERFORM pg_advisory_xact_lock_shared({_HOLD}); {then}; END $$"
    )
    await postgres.execute(
        f"CREATE CONSTRAINT TRIGGER held AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION hold()"
    )
    commits = HeldCommits(postgres)
    await commits.hold()
    try:
        yield commits
    finally:
        await commits.let_go()
