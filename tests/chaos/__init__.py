"""Chaos: real workers, producers and servers that are killed, frozen, emptied and cut off at random, and a count after.

1. Two producers ask for jobs, and write down what they intend and what they learn (`producer`, `acts`, `journal`).
2. Three workers run them: each leaves a row in a table that lets doubles stand (`tasks`, `schema`).
3. Faults fall upon all of them and upon Redis and PostgreSQL, drawn from a seed (`faults`, `storm`).
4. When the faults have ended and nothing waits any more (`settling`), what happened is held against what was to happen
   (`ledgers_word`, `verdict`, `traces`), and for each difference all that is known of the job is told (`evidence`).

::

    python -m tests.chaos --seconds 60 --seed 7
"""
