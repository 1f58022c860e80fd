"""The keeper: a small process beside each worker, which renews leases when the worker cannot.

1. `table.py` is memory that both share: the jobs that the worker has claimed, and when it last renewed their leases.
2. `process.py` and `client.py` run in the keeper. They import the standard library and hiredis, and of this project
   only this package: everything else would cost forty megabytes a worker.
3. `keeper.py` runs in the worker. It starts, replaces and dismisses the keeper.

Only the engine may import this package. Code that needs more than the standard library and hiredis must not be put
into `table.py`, `process.py` or `client.py`.
"""
