"""A check that `db` is Tandem's own package, as a project's module of that name would hide it.

Importing this module is the check. Both of Tandem's packages, `db` and `worker`, have such a module, because each must
check before it imports the other.
"""

from importlib.util import find_spec
from pathlib import Path


def _require_sibling() -> None:
    """Raise `ImportError` if Python finds another db than the one that was installed with this worker."""
    spec = find_spec("db")
    if spec is None:
        return
    ours = Path(__file__).resolve().parents[1] / "db" / "__init__.py"
    theirs = Path(spec.origin or next(iter(spec.submodule_search_locations or ()), "")).resolve()
    if theirs != ours:
        raise ImportError(f"Tandem needs its own package db, {ours}, but Python finds {theirs}: rename that one")


_require_sibling()
