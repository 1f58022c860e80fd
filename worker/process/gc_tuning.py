"""Settings of the garbage collector for a process that runs many short jobs."""

import gc

_YOUNG = 10_000  # objects; a few jobs reach CPython's own limit, some hundreds


def tune_gc() -> None:
    """Exclude all loaded objects from later collections, and collect less often.

    Modules, tasks and mappers live as long as the process, and reference counting frees nearly everything that a job
    makes. The collections took a tenth of a short job's time. A higher limit, or a disabled collector, stays as it is.
    """
    if not gc.isenabled():
        return
    gc.collect()
    gc.freeze()
    youngest, *older = gc.get_threshold()
    if 0 < youngest < _YOUNG:
        gc.set_threshold(_YOUNG, *older)
