"""Settings of the garbage collector for a process that runs many short jobs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 10_000  # objects; a few jobs reach CPython's own limit, some hundreds
_LOADING = 1_000_000  # objects; all imports of a worker make a third of it


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect rarely in this block, which imports modules, and exclude what it loaded from later collections.

    Nearly all objects that imports make live as long as the process: of 84,000, a thousand are garbage. Looking for
    those took a fifth of the time to a worker's first job. A higher limit, or zero (never), stays as it is, and so does
    a disabled collector.
    """
    before = gc.get_threshold()
    if not (gc.isenabled() and 0 < before[0] < _LOADING):
        yield
        return
    gc.set_threshold(_LOADING, *before[1:])
    try:
        yield
    finally:
        gc.freeze()
        if gc.get_threshold()[0] == _LOADING:  # else an imported module has set limits of its own
            gc.set_threshold(*before)


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
