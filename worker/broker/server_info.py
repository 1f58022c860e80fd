"""``RedisInfo``: what a Redis server says of itself, for ``tandem doctor`` and the dashboard."""

import time
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from worker.broker.connections import Connections


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """One server."""

    version: str
    role: str
    """``master`` or ``slave``, as Redis writes them."""
    policy: str
    """``maxmemory-policy``: what the server does when its memory is full."""
    used_memory: int
    """Bytes."""
    max_memory: int
    """Bytes. 0 means no limit."""
    keeps_data: bool | None
    """Whether its data survive a restart: it writes an append-only file or snapshots. None if it does not tell."""
    last_save_failed: bool
    clock_ahead: float
    """Seconds that its clock is ahead of this machine's, give or take half a round trip."""
    round_trip: float
    """Seconds."""


async def redis_info(connections: Connections) -> list[RedisInfo]:
    """Ask the server, or each primary of a cluster.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    asked, started = time.time(), time.monotonic()
    seconds, microseconds = await _first(connections.client.time())
    round_trip = time.monotonic() - started
    ahead = seconds + microseconds / 1e6 - (asked + round_trip / 2)
    reply: dict[str, Any] = await connections.client.info("everything")
    servers = [reply] if "redis_version" in reply else list(reply.values())
    takes_snapshots = await _takes_snapshots(connections)
    return [_read(server, takes_snapshots, ahead, round_trip) for server in servers]


async def _takes_snapshots(connections: Connections) -> bool | None:
    try:
        reply = await connections.client.config_get("save")
    except ResponseError:  # managed servers refuse CONFIG
        return None
    return any(reply.values())


async def _first(reply: Any) -> tuple[int, int]:
    """The reply of one server: a cluster's client answers by node."""
    value = await reply
    first: tuple[int, int] = next(iter(value.values())) if isinstance(value, dict) else value
    return first


def _read(server: dict[str, Any], takes_snapshots: bool | None, clock_ahead: float, round_trip: float) -> RedisInfo:
    return RedisInfo(
        version=str(server["redis_version"]),
        role=str(server.get("role", "master")),
        policy=str(server.get("maxmemory_policy", "noeviction")),
        used_memory=int(server.get("used_memory", 0)),
        max_memory=int(server.get("maxmemory", 0)),
        keeps_data=True if server.get("aof_enabled") else takes_snapshots,
        last_save_failed=server.get("rdb_last_bgsave_status", "ok") != "ok"
        or server.get("aof_last_write_status", "ok") != "ok",
        clock_ahead=clock_ahead,
        round_trip=round_trip,
    )
