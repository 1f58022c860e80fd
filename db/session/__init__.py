"""One session: its classes, who uses it now, its callbacks, its transaction blocks, and who ends it.

Imported by the modules of `db` and by `worker`; of `db` it imports only `db.engine`, `db.aio` and `db.errors`.
Nothing that spans several sessions belongs here (see :mod:`db.scope`), nor what drivers need (see :mod:`db.engine`).
"""
