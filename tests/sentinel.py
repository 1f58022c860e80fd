"""A real Sentinel, with what it watches."""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import redis

from tests.conftest import StartRedis
from worker.embedded import EmbeddedRedis
from worker.embedded.port import free_port
from worker.embedded.redis import server_program

_LINK = "master-link-status"


class Sentinel:
    """A primary, its replica, and a Sentinel that watches them; real processes."""

    def __init__(self, start: StartRedis, folder: Path) -> None:
        self.primary, self.replica = start(), start()
        follow(self.primary, self.replica)
        self.port = free_port()
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\n"
            f"sentinel monitor main 127.0.0.1 {self.primary.port} 1\n"
            "sentinel down-after-milliseconds main 1500\n"  # a machine that stands still for less is not to fail over
            "sentinel failover-timeout main 10000\n"
        )
        self._process = subprocess.Popen(
            [str(server_program()), str(configuration), "--sentinel"],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/main/0"

    def ask(self, *words: str) -> Any:
        """Ask the Sentinel; None while it does not answer."""
        with redis.Redis(port=self.port, decode_responses=True) as client, contextlib.suppress(redis.ConnectionError):
            return client.execute_command("SENTINEL", *words)
        return None

    def fail_over(self) -> None:
        """Make the replica the primary, unless the Sentinel does so already: it may where a machine stands still."""
        try:
            if self.primary_port() == self.primary.port:
                self.ask("FAILOVER", "main")
        except redis.ResponseError as error:
            if not str(error).startswith("INPROG"):
                raise

    def primary_port(self) -> int:
        answer = self.ask("GET-MASTER-ADDR-BY-NAME", "main")
        return int(answer[1]) if answer else 0

    def knows_a_good_replica(self) -> bool:
        replicas = self.ask("REPLICAS", "main")
        return bool(replicas) and dict(zip(replicas[0][::2], replicas[0][1::2], strict=True))[_LINK] == "ok"

    def close(self) -> None:
        """Stop the Sentinel."""
        self._process.kill()
        self._process.wait()


def follow(primary: EmbeddedRedis, replica: EmbeddedRedis) -> None:
    """Make a server the replica of another one."""
    with redis.Redis.from_url(replica.url) as client:
        client.replicaof("127.0.0.1", str(primary.port))
