"""One engine: its URL and options, what each driver needs, the guards around its statements, and its end.

Imported by the modules of `db`, by `db.session` and by `worker`; imports `db.aio`, `db.errors` and `db.transient`.
Nothing that knows a session or a scope belongs here.
"""
