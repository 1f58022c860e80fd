"""One worker process: what it has open, how it ends, and who gives it: arq, or ``python -m worker run``."""
