"""``REPLACEMENTS``: what takes the place of arq's settings that a Settings class of Tandem's refuses."""

from collections.abc import Mapping

REPLACEMENTS: Mapping[str, str] = {
    "functions": "list them in the registry's TASKS",
    "cron_jobs": "list them in the registry's TASKS",
    "redis_settings": "set REDIS_URL",
    "redis_pool": "set REDIS_URL",
    "queue_name": "set WORKER_QUEUE, or build(Config.load(queue=...))",
    "max_jobs": "set WORKER_CONCURRENCY, or build(Config.load(concurrency=...))",
    "job_timeout": "set WORKER_JOB_TIMEOUT, or build(Config.load(job_timeout=...))",
    "max_tries": "set WORKER_MAX_TRIES, or build(Config.load(max_tries=...))",
    "keep_result": "set WORKER_KEEP_RESULT, or build(Config.load(keep_result=...))",
    "keep_result_forever": "set WORKER_KEEP_RESULT=3153600000, which is a hundred years",
    "job_completion_wait": "set WORKER_GRACE, or build(Config.load(grace=...))",
    "timezone": "give it to @cron",
    "job_serializer": "jobs are JSON here: give worker.serialize to the producers",
    "job_deserializer": "set WORKER_ACCEPT_PICKLE=true to take pickled jobs",
    "allow_abort_jobs": "it has no effect here: jobs can always be aborted",
    "poll_delay": "it has no effect here: a new job wakes a worker, which looks for a stock producer's twice a second",
    "queue_read_limit": "it has no effect here: a worker reads as many jobs as it has free slots",
    "health_check_interval": "it has no effect here: a healthy worker writes its record every second",
}
