"""A registry of the scheduled tasks alone."""

from tests.lifecycle import job_tasks

TASKS = job_tasks.SCHEDULED
LIFESPAN = job_tasks.LIFESPAN
