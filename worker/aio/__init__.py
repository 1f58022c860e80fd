"""Additions to asyncio: backoff, deadlines, cancelling tasks, batching, and event loops in threads.

All of `worker` may import it. It knows nothing of jobs: the broker, the ledger and tasks must not be imported here.
"""
