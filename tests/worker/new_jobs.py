"""Jobs for tests in which their task does not matter."""

from worker.new_job import A_DAY, NewJob


def new_job(
    job_id: str, payload: bytes, queue: str, delay: int = 0, due: int | None = None, expires: int | None = A_DAY
) -> NewJob:
    return NewJob(job_id, payload, "send", queue, 0, due, delay, expires)
