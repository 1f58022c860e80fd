"""What people set and workers obey: the pauses of queues, in the ledger's database and in Redis.

`worker.admin` and `worker.engine` may import it. Code that decides who may set something must not be put here.
"""
