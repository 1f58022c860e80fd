"""The Lua scripts, one per command. Each is one round trip, is atomic in Redis, and uses the clock of Redis."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

_PREFIXES = {"enqueue": "new_jobs", "publish": "new_jobs", "slots": "new_jobs"}
"""The script that is put before another one, by the name of the other one."""


class Client(Protocol):
    """A client that runs scripts: for one server, or for a cluster."""

    def execute_command(self, *args: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script."""

    text: str
    sha: str

    @classmethod
    @cache
    def named(cls, name: str) -> "Script":
        text = _source(_PREFIXES[name]) + _source(name) if name in _PREFIXES else _source(name)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def run(self, client: Client, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the script on these keys, and return its reply. The text is sent only if the server does not know it yet.

        Raises:
            ReadOnlyError: the server is not the primary any more.
            RedisError, OSError: as redis-py raises them.
        """
        try:
            try:
                return await client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return await client.execute_command("EVAL", self.text, len(keys), *keys, *arguments)
        except ResponseError as error:
            raise _unwrapped(error) from None

    def run_sync(self, client: Client, key: str, arguments: Sequence[Any]) -> Any:
        """Do as `run`, for the heartbeat's thread."""
        try:
            try:
                return client.execute_command("EVALSHA", self.sha, 1, key, *arguments)
            except NoScriptError:
                return client.execute_command("EVAL", self.text, 1, key, *arguments)
        except ResponseError as error:
            raise _unwrapped(error) from None


def _source(name: str) -> str:
    return (resources.files("worker.broker.scripts") / f"{name}.lua").read_text()


def _unwrapped(error: ResponseError) -> ResponseError:
    """The error as redis-py raises it for a plain command. Redis 6 wraps the errors of a script's commands in text."""
    return ReadOnlyError(str(error)) if "-READONLY" in str(error) else error
