"""All that speaks Redis: the queues of one Redis, their keys, records and scripts, and the connections to it.

All of `worker` may import it. It knows no task and no database: a decision about a job must not be put here.
"""
