"""All code that talks to Redis: the queues of one Redis, their keys, records and scripts, and the connections.

All of `worker` may import it. It knows no tasks and no database. Decisions about jobs must not be put here.
"""
