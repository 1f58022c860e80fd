"""One worker process: what it opens, how it lives and how it ends, under arq's command or ``tandem run``.

The command line, `worker.arq_host` and `worker.settings` may import it. What happens to a single job must not be put
here.
"""
