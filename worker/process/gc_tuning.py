"""The garbage collector of a process that has loaded its code and will run many short jobs."""

import gc

_YOUNG = 10_000  # objects; CPython's own limit, some hundreds, is reached by every few jobs


def tune_gc() -> None:
    """Leave all that has been loaded out of the collections to come, and look for cycles less often.

    Modules, tasks and mappers live as long as the process, and nearly all that a job makes goes by its reference count:
    looking through it took a tenth of a short job's time. Who has chosen limits that are higher, or none, keeps them.
    """
    if not gc.isenabled():
        return
    gc.collect()
    gc.freeze()
    youngest, *older = gc.get_threshold()
    if 0 < youngest < _YOUNG:
        gc.set_threshold(_YOUNG, *older)
