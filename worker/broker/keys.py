"""The names of the Redis keys.

1. They are arq's own (arq 0.28, ``constants.py``), whatever the queue, so stock producers and clients share them.
2. A queue whose name is hash-tagged, ``{mail}``, keeps all its keys under its tag, and so in one slot of a Redis
   Cluster; stock arq does not know those.
"""

import re
from dataclasses import dataclass
from functools import cache

_TAGGED = re.compile(r"\{[^{}]+\}")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue."""

    queue: str
    """A sorted set of job ids by when they are due."""
    prefix: str

    @classmethod
    @cache
    def of(cls, queue: str) -> "Keys":
        return cls(queue, f"{queue}:" if _TAGGED.fullmatch(queue) else "arq:")

    def job(self, job_id: str) -> str:
        """What was asked for."""
        return f"{self.prefix}job:{job_id}"

    def result(self, job_id: str) -> str:
        """What came of it, for as long as it is kept."""
        return f"{self.prefix}result:{job_id}"

    def in_progress(self, job_id: str) -> str:
        """Who runs it: a lease, ``token:score``."""
        return f"{self.prefix}in-progress:{job_id}"

    def ended(self, job_id: str) -> str:
        """The channel that says that the job has ended."""
        return f"{self.prefix}ended:{job_id}"

    @property
    def in_one_slot(self) -> bool:
        """Whether a Redis Cluster keeps them all in one place."""
        return _TAGGED.fullmatch(self.queue) is not None

    @property
    def slots(self) -> str:
        """The last slot of each scheduled task: a hash."""
        return f"{self.prefix}slots"

    @property
    def epoch(self) -> str:
        """What goes when Redis loses its memory: a random value."""
        return f"{self.queue}:epoch"

    @property
    def wake(self) -> str:
        """The channel that says that something was queued."""
        return f"{self.prefix}wake:{self.queue}"

    def health(self, worker_id: str) -> str:
        """One worker's record of itself."""
        return f"{self.queue}:health-check:{worker_id}"

    @staticmethod
    def is_health(key: str) -> bool:
        """Whether a key is some worker's record of itself."""
        return ":health-check:" in key

    @property
    def tasks(self) -> str:
        """The tasks that living workers know: a sorted set by until when that is believed."""
        return f"{self.queue}:tasks"

    @property
    def healthy(self) -> str:
        """The ids of the workers that may have a record: a set."""
        return f"{self.queue}:health-checks"
