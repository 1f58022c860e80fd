"""The chores that run by themselves."""

from tests.lifecycle import chores

TASKS = chores.SCHEDULED
LIFESPAN = chores.LIFESPAN
