"""The names of the Redis keys.

1. They are arq's own (arq 0.28, ``constants.py``) for every queue, so stock arq producers and clients share them.
2. A queue whose name is hash-tagged, ``{mail}``, keeps all its keys under its tag, and so in one slot of a Redis
   Cluster. Stock arq does not know these keys.
"""

import re
from dataclasses import dataclass
from functools import cache

_TAGGED = re.compile(r"\{[^{}]+\}")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue."""

    queue: str
    """A sorted set of job ids by due time."""
    prefix: str

    @classmethod
    @cache
    def of(cls, queue: str) -> "Keys":
        return cls(queue, f"{queue}:" if _TAGGED.fullmatch(queue) else "arq:")

    def job(self, job_id: str) -> str:
        """The payload: the task and its arguments."""
        return f"{self.prefix}job:{job_id}"

    def result(self, job_id: str) -> str:
        """The result, while it is kept."""
        return f"{self.prefix}result:{job_id}"

    def in_progress(self, job_id: str) -> str:
        """The lease: ``token:score`` of the worker that runs the job."""
        return f"{self.prefix}in-progress:{job_id}"

    def progress(self, job_id: str) -> str:
        """The last progress that the job has reported."""
        return f"{self.prefix}progress:{job_id}"

    def progressed(self, job_id: str) -> str:
        """The channel that is notified when the job has reported progress."""
        return f"{self.prefix}progressed:{job_id}"

    def ended(self, job_id: str) -> str:
        """The channel that is notified when the job has ended."""
        return f"{self.prefix}ended:{job_id}"

    @property
    def in_one_slot(self) -> bool:
        """Whether a Redis Cluster keeps all of these keys in one slot."""
        return _TAGGED.fullmatch(self.queue) is not None

    @property
    def slots(self) -> str:
        """A hash: the last cron slot of each scheduled task."""
        return f"{self.prefix}slots"

    @property
    def epoch(self) -> str:
        """A random value, which is missing after Redis has lost its data."""
        return f"{self.queue}:epoch"

    def command(self, process: str) -> str:
        """The last command to the worker of this process."""
        return f"{self.queue}:command:{process}"

    def commands(self, process: str) -> str:
        """The channel on which the worker of this process is notified of a command."""
        return f"{self.prefix}commands:{process}"

    @property
    def paused(self) -> str:
        """The copy of the queue's pause: see `worker.broker.pauses`. Missing if the queue is not paused."""
        return f"{self.queue}:paused"

    @property
    def wake(self) -> str:
        """The channel that is notified when a job was queued."""
        return f"{self.prefix}wake:{self.queue}"

    def health(self, worker_id: str) -> str:
        """The health record of one worker."""
        return f"{self.queue}:health-check:{worker_id}"

    @property
    def arq_health(self) -> str:
        """The health record of the queue's workers, under the name and in the form that arq's own workers use."""
        return f"{self.queue}:health-check"

    @staticmethod
    def is_health(key: str) -> bool:
        """Whether a key is a worker's health record."""
        return ":health-check:" in key

    @property
    def tasks(self) -> str:
        """A sorted set: the tasks that live workers know, each with the time until which that holds."""
        return f"{self.queue}:tasks"

    @property
    def metrics(self) -> str:
        """The beginning of the keys of what the queue's workers have counted: see ``scripts/measure.lua``."""
        return f"{self.queue}:metrics:"

    @property
    def healthy(self) -> str:
        """A set: the ids of the workers that may have a health record."""
        return f"{self.queue}:health-checks"
