"""What the ledger knows of a claimed job whose payload Redis has lost, or which nobody can read."""

from sqlalchemy.exc import DBAPIError

from db.transient import is_refused
from worker.exchange import Claim
from worker.ledger import Ledger, Unpublished


async def recall(claim: Claim, ledger: Ledger) -> Claim:
    """`claim` with the payload that the ledger has; without one where the job has expired, or the ledger has no such.

    Raises:
        DBAPIError, OSError: the database is away.
    """
    row = await pending_row(claim, ledger)
    return claim if row is None or row.expired else claim._replace(payload=row.payload)


async def pending_row(claim: Claim, ledger: Ledger) -> Unpublished | None:
    """The pending row of a claimed job, if it has one.

    Raises:
        DBAPIError, OSError: the database is away.
    """
    try:
        return await ledger.pending(claim.raw_id.decode(errors="backslashreplace"))
    except DBAPIError as error:
        if is_refused(error):  # no row can have such an id
            return None
        raise
