"""Traces of OpenTelemetry, and the fields of log lines.

All of `worker` but `broker`, `ledger` and `aio` may import it. Optional packages are imported in functions alone, once
the process itself has set them up. Code that a job needs in a process without traces must not be put here.
"""
