"""What the worker needs of asyncio and asyncio does not have: pauses, deadlines, cancelling and batching.

All of `worker` may import it. It imports nothing of jobs: no broker, no ledger, no task.
"""
