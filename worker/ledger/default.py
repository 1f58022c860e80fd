"""The default ledger of a process."""

from worker.ledger.ledger import Ledger

_ledger: Ledger | None = None


def default_ledger() -> Ledger:
    """The ledger that was set, else the table that ``WORKER_LEDGER`` names in the default database."""
    if _ledger is None:
        from worker.config import Config  # noqa: PLC0415 - pydantic, for a process that uses the default

        config = Config.load()
        set_default_ledger(Ledger(config.ledger, keep_arguments=config.keep_arguments))
    assert _ledger is not None  # noqa: S101 - just set
    return _ledger


def set_default_ledger(ledger: Ledger | None) -> None:
    """Make `ledger` the default ledger. None restores the table that ``WORKER_LEDGER`` names."""
    global _ledger  # noqa: PLW0603 - one default per process
    _ledger = ledger
