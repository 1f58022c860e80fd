"""Check, when imported, that the package `worker` is Tandem's own.

Tandem installs two packages, `db` and `worker`. A project with a module of the same name hides one of them. Each
package has such a check of its own, as it must not import the other one before it knows that it is Tandem's.
"""

from importlib.util import find_spec
from pathlib import Path


def _require_sibling() -> None:
    """Raise `ImportError` if Python finds another worker than the one that was installed with this db."""
    spec = find_spec("worker")
    if spec is None:
        return
    ours = Path(__file__).resolve().parents[1] / "worker" / "__init__.py"
    theirs = Path(spec.origin or next(iter(spec.submodule_search_locations or ()), "")).resolve()
    if theirs != ours:
        raise ImportError(f"Tandem needs its own package worker, {ours}, and Python finds {theirs}: rename that one")


_require_sibling()
