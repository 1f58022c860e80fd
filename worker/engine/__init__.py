"""A worker's loops, and one running job: from the claim to the outcome that is written down.

Only `worker.process`, `worker.settings` and the command line may import it. Code that enqueues must not be put here.
"""
