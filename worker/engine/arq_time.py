"""`in_arqs_zone`: ``ctx["enqueue_time"]`` in the zone that arq reads from the environment."""

import logging
import os
from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo

logger = logging.getLogger("worker")

_VARIABLES = ("ARQ_TIMEZONE", "arq_timezone", "TIMEZONE", "timezone")
"""arq 0.28, ``constants.py``: `timezone_env_vars`."""


def in_arqs_zone(moment: datetime) -> datetime:
    """The same moment in arq's zone. As it is if the environment has none."""
    zone = _zone()
    return moment if zone is None else moment.astimezone(zone)


@cache
def _zone() -> ZoneInfo | None:
    for variable in _VARIABLES:
        if name := os.environ.get(variable):
            try:
                return ZoneInfo(name)
            except (OSError, ValueError, KeyError):
                logger.warning("%s=%r is not the name of a time zone: ctx['enqueue_time'] is in UTC", variable, name)
    return None
