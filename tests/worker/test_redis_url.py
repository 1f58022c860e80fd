"""REDIS_URL: what it may say, and how what it may not say is refused."""

import re
from typing import Any

import pytest
import redis
import redis.asyncio

from worker import Queue
from worker.connection import close_sync, connect, connect_sync
from worker.redis_url import RedisAddress


class TestOneServer:
    def test_tcp(self) -> None:
        """A host, a port, a database, and a login whose characters may be encoded."""
        address = RedisAddress.parse("redis://us%40er:p%2Fw@cache:6380/3")
        assert (address.kind, address.hosts, address.database) == ("tcp", (("cache", 6380),), 3)
        assert address.login == {"username": "us@er", "password": "p/w"}

    def test_defaults(self) -> None:
        """This machine, Redis' own port, database 0, nobody."""
        address = RedisAddress.parse("redis://")
        assert (address.hosts, address.database) == ((("localhost", 6379),), 0)
        assert address.login == {"username": None, "password": None}

    def test_ipv6(self) -> None:
        """An IPv6 address stands in brackets."""
        assert RedisAddress.parse("rediss://[::1]:7000").hosts == (("::1", 7000),)

    def test_unix(self) -> None:
        """A socket's path; the database and the login are options."""
        address = RedisAddress.parse("unix:///run/redis.sock?db=2&password=a%26b")
        assert (address.path, address.hosts, address.database, address.password) == ("/run/redis.sock", (), 2, "a&b")

    def test_the_option_db_wins(self) -> None:
        """As in redis-py."""
        assert RedisAddress.parse("redis://cache/1?db=4").database == 4

    def test_a_password_with_a_plus(self) -> None:
        """A plus is a plus, and no space."""
        assert RedisAddress.parse("redis://cache?password=a+b").password == "a+b"


class TestSentinels:
    def test_parts(self) -> None:
        """Several hosts, a service, a database, and the primary's login."""
        address = RedisAddress.parse("redis+sentinel://us%40er:p%2Fw@one,two:7000/main/3")
        assert address.hosts == (("one", 26379), ("two", 7000))
        assert (address.kind, address.service, address.database) == ("sentinel", "main", 3)
        assert address.login == {"username": "us@er", "password": "p/w"}
        assert address.sentinel_login == {}

    def test_a_login_of_their_own(self) -> None:
        """Sentinels may ask for another login than the primary."""
        address = RedisAddress.parse("redis+sentinel://:p@one/main?sentinel_username=app&sentinel_password=s%3Fp")
        assert address.sentinel_login == {"username": "app", "password": "s?p"}
        assert "s?p" not in repr(address)

    def test_ipv6(self) -> None:
        """Addresses in brackets, with a port or without."""
        address = RedisAddress.parse("redis+sentinel://:p@[::1],[fe80::2]:7000,three/main/0")
        assert address.hosts == (("::1", 26379), ("fe80::2", 7000), ("three", 26379))

    @pytest.mark.parametrize(
        "rest",
        [
            "host",
            "/service",
            "h/s/x",
            "u:s3cret/w@host/service",
            "h:s3cret/s",
            ":a[s3cret]@h/",
            "h:0/s",
            "h/s/-1",
            "::1:26379/main",
            "[::1/main",
            "h,,i/main",
        ],
    )
    def test_refused(self, rest: str) -> None:
        """What does not name both hosts and service, or more, is refused, and nothing of it quoted."""
        with pytest.raises(ValueError, match=re.escape("write redis+sentinel://")) as caught:
            RedisAddress.parse(f"redis+sentinel://{rest}")
        assert "s3cret" not in str(caught.value)


class TestCluster:
    def test_parts(self) -> None:
        """Several hosts, IPv6 ones in brackets, and a login."""
        address = RedisAddress.parse("redis+cluster://:secret@one,[::1]:7000")
        assert (address.kind, address.hosts) == ("cluster", (("one", 6379), ("::1", 7000)))
        assert address.login == {"username": None, "password": "secret"}

    @pytest.mark.parametrize(
        "rest", ["", "host/0", ":s3cret/w@host", ":s3cret#w@host", "host:s3cret", "host:", "h:70000"]
    )
    def test_refused(self, rest: str) -> None:
        """A cluster has hosts and no databases; nothing of what is refused is quoted."""
        with pytest.raises(ValueError, match=re.escape("write redis+cluster://")) as caught:
            RedisAddress.parse(f"redis+cluster://{rest}")
        assert "s3cret" not in str(caught.value)


OPTIONS: dict[str, Any] = {
    "client_name=shop": {"client_name": "shop"},
    "socket_timeout=2.5": {"socket_timeout": 2.5},
    "socket_connect_timeout=1": {"socket_connect_timeout": 1.0},
    "socket_keepalive=no": {"socket_keepalive": False},
    "health_check_interval=30": {"health_check_interval": 30},
    "protocol=2": {},
    "decode_responses=False": {},
    "retry_on_timeout=0": {},
    "encoding=utf-8": {},
}


class TestOptions:
    @pytest.mark.parametrize("option", OPTIONS)
    def test_are_read(self, option: str) -> None:
        """Each as redis-py wants it; one that says what is so anyway is not passed on."""
        assert RedisAddress.parse(f"redis://cache?{option}").options == OPTIONS[option]

    def test_of_the_pool(self) -> None:
        """How many connections there may be, and how long a call waits for one."""
        address = RedisAddress.parse("redis://cache?max_connections=7&timeout=3")
        assert (address.max_connections, address.wait, address.options) == (7, 3.0, {})

    def test_of_tls(self) -> None:
        """Celery's spelling is understood, too."""
        address = RedisAddress.parse("rediss://cache?ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false")
        assert address.options == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("redis://h?decode_responses=True", "the option decode_responses: replies are read as bytes"),
            ("redis://h?protocol=3", "the option protocol: Tandem speaks RESP 2"),
            ("redis://h?retry_on_timeout=yes", "the option retry_on_timeout: a command whose answer is late"),
            ("redis://h?no_such=1", "there is no option 'no_such': leave it out, or write one of client_name, db,"),
            ("redis://h?ssl_cert_reqs=none", "the option ssl_cert_reqs is for rediss://"),
            ("rediss://h?ssl_cert_reqs=maybe", "the option ssl_cert_reqs must be none, optional or required"),
            ("redis://h?socket_timeout=soon", "the option socket_timeout must be a number of seconds"),
            ("redis://h?socket_timeout=0", "the option socket_timeout must be a number of seconds, more than 0"),
            ("redis://h?max_connections=0", "the option max_connections must be a whole number, 1 or more"),
            ("redis://h?client_name=a%20b", "the option client_name must be a name without spaces"),
            ("redis://h?sentinel_password=x", "the option sentinel_password is for redis+sentinel://"),
            ("unix:///r.sock?socket_keepalive=1", "the option socket_keepalive is for redis:// and rediss://"),
            ("redis+sentinel://h/s?db=1", "the option db is for redis:// and rediss:// and unix://"),
            ("redis+sentinel://h/s?ssl=1", "there is no option 'ssl'"),
            ("redis+cluster://h?ssl=true", "there is no option 'ssl'"),
            ("redis://s3?cr/et@h", "there is no option with this name"),
        ],
    )
    def test_are_refused_by_name(self, url: str, message: str) -> None:
        """In one line, where the URL is read: by the settings, and by whoever makes a `Queue`."""
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            Queue(url)
        assert "\n" not in str(caught.value)
        assert "cr/et" not in str(caught.value)

    async def test_work(self, redis_url: str) -> None:
        """Those that are taken reach the server, from the event loop and from a thread."""
        url = f"{redis_url}{'&' if '?' in redis_url else '?'}client_name=shop&health_check_interval=1&socket_timeout=3"
        client = connect(url)
        assert await client.client_getname() == "shop"
        await client.aclose()
        sync = connect_sync(url, longest_wait=0.5)
        assert isinstance(sync, redis.Redis)
        assert sync.client_getname() == "shop"
        assert vars(sync.connection_pool.make_connection())["socket_timeout"] == 0.5
        close_sync(sync)
