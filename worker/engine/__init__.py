"""The loops of a worker, and the execution of one job from its claim to its recorded outcome.

Only `worker.process`, `worker.settings` and the command line may import it. Code that enqueues must not be put here.
"""
