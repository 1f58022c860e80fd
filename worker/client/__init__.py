"""What a process needs to enqueue jobs: options, signatures, schedules, and the jobs of a transaction.

The public modules and the engine may import it. Nothing that runs jobs must be put here: web processes import it.
"""
