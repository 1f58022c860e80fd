"""One worker process from start to end, under arq's command or ``tandem run``.

The command line, `worker.arq_host` and `worker.settings` may import it. Code that handles a single job must not be put
here.
"""
