"""What ``tandem doctor`` checks in Redis: version, role, memory, policy, persistence and clock."""

from collections.abc import Iterator

from worker.broker.server_info import RedisInfo
from worker.cli.doctor.finding import Finding, Level

_OLDEST = (6, 2)  # the oldest version that the tests run on
_FULL = 0.8  # of maxmemory
_CLOCK = 1.0  # seconds by which a clock may be off
_SLOW = 0.005  # seconds for a round trip; a claim and a finish take one each
_GIB = 1024**3


def check_redis(info: RedisInfo) -> Iterator[Finding]:
    """The findings for one server."""
    yield _version(info)
    yield _role(info)
    yield _policy(info)
    yield _memory(info)
    yield _persistence(info)
    yield check_clock("Redis clock", info.clock_ahead, info.round_trip)
    if info.round_trip > _SLOW:
        yield Finding(
            Level.NOTE,
            "Redis latency",
            f"a round trip takes {info.round_trip * 1000:.1f} ms from here: idle latency grows by as much",
        )


def check_clock(subject: str, ahead: float, round_trip: float) -> Finding:
    """A finding on a server's clock, which was read within `round_trip` seconds."""
    if abs(ahead) <= _CLOCK + round_trip / 2:
        return Finding(Level.OK, subject, f"within {_CLOCK:g} s of this machine's")
    return Finding(
        Level.WARNING,
        subject,
        f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: delays are off by as much",
        "synchronise the clocks of all machines, for example: timedatectl set-ntp true",
    )


def _version(info: RedisInfo) -> Finding:
    numbers = tuple(int(part) for part in info.version.split(".")[:2] if part.isdigit())
    if numbers >= _OLDEST:
        return Finding(Level.OK, "Redis version", info.version)
    oldest = ".".join(map(str, _OLDEST))
    return Finding(Level.ERROR, "Redis version", f"{info.version} is too old", f"install Redis {oldest} or later")


def _role(info: RedisInfo) -> Finding:
    if info.role != "slave":
        return Finding(Level.OK, "Redis role", "primary")
    return Finding(
        Level.ERROR, "Redis role", "a replica: it takes no writes", "set REDIS_URL to the primary, or to the Sentinels"
    )


def _policy(info: RedisInfo) -> Finding:
    if info.policy == "noeviction":
        return Finding(Level.OK, "Redis eviction", "noeviction: a full memory refuses new jobs and keeps the old ones")
    return Finding(
        Level.ERROR,
        "Redis eviction",
        f"{info.policy}: a full memory deletes jobs",
        "redis-cli CONFIG SET maxmemory-policy noeviction, and write it into redis.conf",
    )


def _memory(info: RedisInfo) -> Finding:
    used = f"{info.used_memory / _GIB:.2f} GiB used"
    if not info.max_memory:
        return Finding(Level.OK, "Redis memory", f"{used}, without a limit of Redis' own")
    text = f"{used} of {info.max_memory / _GIB:.2f} GiB"
    if info.used_memory < _FULL * info.max_memory:
        return Finding(Level.OK, "Redis memory", text)
    return Finding(
        Level.WARNING,
        "Redis memory",
        f"{text}: enqueueing fails when it is full",
        "raise maxmemory, set a shorter WORKER_KEEP_RESULT, or add workers if the queues grow",
    )


def _persistence(info: RedisInfo) -> Finding:
    if info.last_save_failed:
        return Finding(
            Level.ERROR,
            "Redis persistence",
            "the last save to disk failed: Redis refuses writes until one succeeds",
            "look into Redis' log and the free space on its disk",
        )
    match info.keeps_data:
        case True:
            return Finding(Level.OK, "Redis persistence", "data survive a restart of Redis")
        case None:
            return Finding(Level.NOTE, "Redis persistence", "this server does not tell whether it saves its data")
    return Finding(
        Level.NOTE,
        "Redis persistence",
        "nothing is saved: jobs that were enqueued outside of a transaction are lost when Redis restarts",
        "redis-cli CONFIG SET appendonly yes, or enqueue in transactions",
    )
