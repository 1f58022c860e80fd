"""The ledger's migrations, one per file in ``versions``. They do not use `worker.ledger.table`, which may change."""
