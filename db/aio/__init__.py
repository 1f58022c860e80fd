"""Helpers for asyncio: work that a cancellation must not interrupt, and threads.

Any module may import it; it imports nothing of this project.
Code that knows a database does not belong here.
"""
