"""One engine: its URL, its drivers, the guards around its statements, the reset of its connections, and its lease.

Imported by the modules of `db`, by `db.session` and by `worker`; imports `db.aio`, `db.errors` and `db.transient`.
Code that knows a session or a scope does not belong here.
"""
