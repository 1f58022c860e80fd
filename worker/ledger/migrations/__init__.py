"""The ledger's migrations, one a file in ``versions``: written out, as the table of today may change tomorrow."""
