"""A job whose payload Redis has lost, but not its place in the queue, is recalled from the ledger."""

from sqlalchemy.exc import DBAPIError

from db.transient import is_refused
from worker.exchange import Claim
from worker.ledger import Ledger


async def recall(claim: Claim, ledger: Ledger) -> Claim:
    """`claim` with the payload that the ledger has; without one where the job has expired, or the ledger has no such.

    Raises:
        DBAPIError, OSError: the database is away.
    """
    try:
        row = await ledger.pending(claim.raw_id.decode(errors="backslashreplace"))
    except DBAPIError as error:
        if is_refused(error):  # no row can have such an id
            return claim
        raise
    return claim if row is None or row.expired else claim._replace(payload=row.payload)
