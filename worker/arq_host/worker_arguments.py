"""Arguments that a program gives to arq's ``Worker`` besides a Settings class of Tandem's.

``create_worker(Settings, max_jobs=5)`` would be silently ignored, or would let arq's worker claim jobs by itself.
"""

from collections.abc import Mapping
from typing import Any

from arq.worker import Worker

from worker.arq_host.replacements import REPLACEMENTS
from worker.errors import ConfigError

_ATTRIBUTES = (
    "queue_name",
    "cron_jobs",
    "on_shutdown",
    "on_job_start",
    "on_job_end",
    "after_job_end",
    "max_jobs",
    "job_timeout_s",
    "keep_result_s",
    "keep_result_forever",
    "poll_delay_s",
    "queue_read_limit",
    "max_tries",
    "health_check_interval",
    "_job_completion_wait",
    "allow_abort_jobs",
    "job_serializer",
    "job_deserializer",
    "expires_extra_ms",
    "timezone",
    "_pool",
)
"""arq 0.28, ``worker.py``: `Worker.__init__`."""
_HOOK = "set it in the Settings class"


def refuse_arguments(worker: Worker, settings: Mapping[str, Any]) -> None:
    """Check that `worker` was made with nothing that the engine does not follow.

    Args:
        settings: what the Settings class gives to arq.

    Raises:
        ConfigError: it was. The message has a line for each argument.
    """
    plain = Worker(**{**settings, "handle_signals": False})
    other = [name for name in _ATTRIBUTES if getattr(worker, name) != getattr(plain, name)]
    if worker.functions.keys() != plain.functions.keys():
        other.insert(0, "functions")
    if other:
        raise ConfigError("\n".join(map(_refusal, other)))


def _refusal(attribute: str) -> str:
    name = "redis_pool" if attribute == "_pool" else attribute.removeprefix("_").removesuffix("_s")
    return f"{name} given to arq's Worker: {REPLACEMENTS.get(name, _HOOK)}"
