"""Helpers for asyncio: work that a cancellation must not interrupt, and threads.

Any module may import it; it imports nothing of this project.
Nothing that knows a database belongs here.
"""
