"""Chaos test: random faults against real workers, producers and servers, then a check of every job.

1. Two producers enqueue jobs. Each logs what it intends before an action and what it was told after (`producer`,
   `actions`, `logs`).
2. Three workers run the jobs. Each job inserts a row into a table that accepts duplicates (`tasks`).
3. A fault injector kills, pauses and disconnects processes, and stops or empties Redis and PostgreSQL. It draws the
   faults from a seed (`faults`, `injector`, `processes`, `servers`).
4. When no job waits or runs any more, a snapshot of the final state is taken (`snapshot`) and checked (`checks`). The
   report lists each violation with all that is known of its job (`report`).

`driver` runs these steps in order::

    python -m tests.chaos --seconds 60 --seed 7
"""
