"""Running under arq's own command, ``arq worker.Settings``: all code that depends on arq's internals.

Only `worker.settings` and `worker.process` may import it. Code that runs without arq must not be put here.
"""
