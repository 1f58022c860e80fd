"""The Lua scripts, one a verb: each is one round trip, atomic in Redis, and goes by Redis' own clock."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

_BEGINNINGS = {"enqueue": "new_jobs", "publish": "new_jobs"}
"""What scripts have in common, which is put before each of them."""


class Client(Protocol):
    """What runs a script: a client for one server, or for a cluster."""

    def execute_command(self, *args: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Script:
    """One verb."""

    text: str
    sha: str

    @classmethod
    @cache
    def named(cls, name: str) -> "Script":
        text = _source(_BEGINNINGS[name]) + _source(name) if name in _BEGINNINGS else _source(name)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def run(self, client: Client, key: str, arguments: Sequence[Any]) -> Any:
        """Run it on one key; the text is sent only to a server that does not know it yet.

        Raises:
            ReadOnlyError: the server is not the primary any more.
            RedisError, OSError: as redis-py does.
        """
        try:
            try:
                return await client.execute_command("EVALSHA", self.sha, 1, key, *arguments)
            except NoScriptError:
                return await client.execute_command("EVAL", self.text, 1, key, *arguments)
        except ResponseError as error:
            raise _told_apart(error) from None

    def run_sync(self, client: Client, key: str, arguments: Sequence[Any]) -> Any:
        """`run`, for the heartbeat's thread."""
        try:
            try:
                return client.execute_command("EVALSHA", self.sha, 1, key, *arguments)
            except NoScriptError:
                return client.execute_command("EVAL", self.text, 1, key, *arguments)
        except ResponseError as error:
            raise _told_apart(error) from None


def _source(name: str) -> str:
    return (resources.files("worker.broker.scripts") / f"{name}.lua").read_text()


def _told_apart(error: ResponseError) -> ResponseError:
    """The error as redis-py raises it for a plain command: Redis 6 wraps what a script's own commands meet in text."""
    return ReadOnlyError(str(error)) if "-READONLY" in str(error) else error
