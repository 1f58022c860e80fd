"""One session: its classes, the access to it, its owner, its callbacks and its transaction blocks.

Imported by the modules of `db` and by `worker`; of `db` it imports only `db.engine`, `db.aio` and `db.errors`.
Code that spans several sessions does not belong here (see :mod:`db.scope`), nor code about drivers (see
:mod:`db.engine`).
"""
