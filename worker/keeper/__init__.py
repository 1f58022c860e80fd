"""The keeper: a small process beside each worker, which keeps its leases where the worker itself cannot.

1. `table.py` is the memory that the two share: what the worker has claimed, and when it last kept its leases.
2. `process.py` and `client.py` run in the keeper. They import the standard library and hiredis, and of this project
   this package alone: everything else would cost forty megabytes a worker.
3. `keeper.py` is the worker's side of it: start it, replace it, dismiss it.

Only the engine may import it. Nothing that needs more than the standard library and hiredis must be put into the first
two.
"""
