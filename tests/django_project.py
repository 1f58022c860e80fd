"""Django, set up once in a process, for tests that use it. It has no database until `use` names one."""

from typing import Any

import django
from django.conf import settings
from django.db import connections
from sqlalchemy import URL

settings.configure(DATABASES={}, LOGGING_CONFIG=None, ALLOWED_HOSTS=["*"])
django.setup()


def use(**database: Any) -> None:
    """Make a database Django's default one. The arguments are those of ``DATABASES``."""
    connections.settings["default"] = connections.configure_settings({"default": database})["default"]


def use_postgres(url: URL) -> None:
    """Make the PostgreSQL database of `url` Django's default one."""
    use(
        ENGINE="django.db.backends.postgresql",
        NAME=url.database,
        USER=url.username,
        PASSWORD=url.password or "",
        HOST=url.host or url.query["host"],
        PORT=url.port or url.query["port"],
    )
