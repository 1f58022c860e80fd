"""`db.session` is a function and a package: whatever is imported first, users get the function."""

import subprocess
import sys

import pytest

CHECK = """
import inspect
import db
from db import scope, session
assert inspect.iscoroutinefunction(db.session) and db.session is session, session
assert inspect.isclass(db.scope) and db.scope is scope, scope
import db.session.access, db.session.savepoints
from db.session import owner
from db.session.transaction_blocks import Transaction
from db import session as again
assert db.session is session and again is session, again
assert owner.__name__ == "db.session.owner"
"""


@pytest.mark.parametrize(
    "first",
    [
        "import db",
        "from db import session",
        "import db.session",
        "import db.session.access",
        "import db.session.owner",
        "from db.session.callbacks import Callbacks",
        "import db.scope",
        "import db.sessions",
        "import db.asgi",
        "import db.testing",
        "import db.engine.guards",
        "import worker",
    ],
)
def test_db_session_is_the_function_whatever_is_imported_first(first: str) -> None:
    """The package of the same name is reached by its modules alone."""
    subprocess.run([sys.executable, "-c", f"{first}\n{CHECK}"], check=True)
