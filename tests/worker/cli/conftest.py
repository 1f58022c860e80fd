"""Commands, beside workers of the test's own process."""

from tests.worker.engine.conftest import start

__all__ = ["start"]
