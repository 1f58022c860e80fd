"""A job whose payload Redis has lost, but not its place in the queue, is recalled from the ledger."""

from worker.exchange import Claim
from worker.ledger import Ledger


async def recall(claim: Claim, ledger: Ledger) -> Claim:
    """`claim` with the payload that the ledger has; without one where the job has expired, or the ledger has no such.

    Raises:
        DBAPIError, OSError: the database is away.
    """
    row = await ledger.pending(claim.raw_id.decode(errors="backslashreplace"))
    return claim if row is None or row.expired else claim._replace(payload=row.payload)
