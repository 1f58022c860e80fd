"""The Lua scripts, one a verb: each is one round trip, atomic in Redis, and goes by Redis' own clock."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import NoScriptError


@dataclass(frozen=True, slots=True)
class Script:
    """One verb."""

    text: str
    sha: str

    @classmethod
    @cache
    def named(cls, name: str) -> "Script":
        text = (resources.files("worker.scripts") / f"{name}.lua").read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def run(self, client: redis.asyncio.Redis, key: str, arguments: Sequence[Any]) -> Any:
        """Run it on one key; the text is sent only to a server that does not know it yet."""
        try:
            return await client.execute_command("EVALSHA", self.sha, 1, key, *arguments)
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, 1, key, *arguments)

    def run_sync(self, client: redis.Redis, key: str, arguments: Sequence[Any]) -> Any:
        """`run`, for the heartbeat's thread."""
        try:
            return client.execute_command("EVALSHA", self.sha, 1, key, *arguments)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, 1, key, *arguments)
