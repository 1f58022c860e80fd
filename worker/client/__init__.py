"""Enqueueing jobs: options, signatures, schedules, and jobs of a transaction.

The public modules and the engine may import it. Web processes import it, so code that runs jobs must not be put here.
"""
