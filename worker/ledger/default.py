"""The ledger that a process uses where it is given none."""

from worker.config import Config
from worker.ledger.ledger import Ledger

_ledger: Ledger | None = None


def default_ledger() -> Ledger:
    """The worker's ledger, else the one that ``WORKER_LEDGER`` names; in the default database."""
    if _ledger is None:
        set_default_ledger(Ledger(Config.load().ledger))
    assert _ledger is not None  # noqa: S101 - just set
    return _ledger


def set_default_ledger(ledger: Ledger | None) -> None:
    """Make `ledger` the default one; None goes back to ``WORKER_LEDGER``."""
    global _ledger  # noqa: PLW0603 - the one default of the process
    _ledger = ledger
