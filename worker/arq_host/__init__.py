"""What it takes to run under arq's own command: ``arq worker.Settings``.

Only `worker.settings` and `worker.process` may import it. Nothing that runs without arq must be put here.
"""
