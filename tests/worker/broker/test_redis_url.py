"""REDIS_URL: which URLs are accepted, and how others are refused."""

import re
from typing import Any

import pytest
import redis
import redis.asyncio

from worker import Broker
from worker.broker.connection import close_sync, connect, connect_sync
from worker.broker.redis_url import RedisAddress


class TestOneServer:
    def test_a_tcp_url_has_host_port_database_and_an_encoded_login(self) -> None:
        """The characters of the login may be percent-encoded."""
        address = RedisAddress.parse("redis://us%40er:p%2Fw@cache:6380/3")
        assert (address.kind, address.hosts, address.database) == ("tcp", (("cache", 6380),), 3)
        assert address.login == {"username": "us@er", "password": "p/w"}

    def test_an_empty_url_means_this_machine_the_usual_port_and_database_0(self) -> None:
        """The defaults are localhost, port 6379, database 0 and no login."""
        address = RedisAddress.parse("redis://")
        assert (address.hosts, address.database) == ((("localhost", 6379),), 0)
        assert address.login == {"username": None, "password": None}

    def test_an_ipv6_address_stands_in_brackets(self) -> None:
        """An IPv6 address stands in brackets."""
        assert RedisAddress.parse("rediss://[::1]:7000").hosts == (("::1", 7000),)

    def test_a_unix_url_has_a_path_and_takes_database_and_login_as_options(self) -> None:
        """The path is the socket's; the database and the login are options."""
        address = RedisAddress.parse("unix:///run/redis.sock?db=2&password=a%26b")
        assert (address.path, address.hosts, address.database, address.password) == ("/run/redis.sock", (), 2, "a&b")

    def test_the_option_db_wins_over_the_path(self) -> None:
        """The option wins, as in redis-py."""
        assert RedisAddress.parse("redis://cache/1?db=4").database == 4

    def test_a_plus_in_a_password_is_no_space(self) -> None:
        """A plus is a plus, and no space."""
        assert RedisAddress.parse("redis://cache?password=a+b").password == "a+b"


class TestSentinels:
    def test_a_sentinel_url_has_hosts_service_database_and_the_primarys_login(self) -> None:
        """The login is the primary's; the Sentinels have none by default."""
        address = RedisAddress.parse("redis+sentinel://us%40er:p%2Fw@one,two:7000/main/3")
        assert address.hosts == (("one", 26379), ("two", 7000))
        assert (address.kind, address.service, address.database) == ("sentinel", "main", 3)
        assert address.login == {"username": "us@er", "password": "p/w"}
        assert address.sentinel_login == {}

    def test_sentinels_can_have_another_login_than_the_primary(self) -> None:
        """Sentinels may ask for another login than the primary."""
        address = RedisAddress.parse("redis+sentinel://:p@one/main?sentinel_username=app&sentinel_password=s%3Fp")
        assert address.sentinel_login == {"username": "app", "password": "s?p"}
        assert "s?p" not in repr(address)

    def test_ipv6_addresses_of_sentinels_stand_in_brackets(self) -> None:
        """Addresses in brackets have a port or the default one."""
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
    def test_an_invalid_sentinel_url_is_refused_and_not_quoted(self, rest: str) -> None:
        """A URL without hosts or service, or with more parts, is refused; no part of it is quoted."""
        with pytest.raises(ValueError, match=re.escape("write redis+sentinel://")) as caught:
            RedisAddress.parse(f"redis+sentinel://{rest}")
        assert "s3cret" not in str(caught.value)


class TestCluster:
    def test_a_cluster_url_has_hosts_and_a_login(self) -> None:
        """There may be several hosts; IPv6 addresses stand in brackets."""
        address = RedisAddress.parse("redis+cluster://:secret@one,[::1]:7000")
        assert (address.kind, address.hosts) == ("cluster", (("one", 6379), ("::1", 7000)))
        assert address.login == {"username": None, "password": "secret"}

    @pytest.mark.parametrize(
        "rest", ["", "host/0", ":s3cret/w@host", ":s3cret#w@host", "host:s3cret", "host:", "h:70000"]
    )
    def test_an_invalid_cluster_url_is_refused_and_not_quoted(self, rest: str) -> None:
        """A cluster has hosts and no databases; no part of a refused URL is quoted."""
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
    def test_each_option_is_read_with_the_type_that_redis_py_takes(self, option: str) -> None:
        """An option that only repeats Tandem's default is not passed on to redis-py."""
        assert RedisAddress.parse(f"redis://cache?{option}").options == OPTIONS[option]

    def test_the_options_of_the_pool_limit_connections_and_waiting(self) -> None:
        """`max_connections` and `timeout` are options of the pool, not of redis-py's connection."""
        address = RedisAddress.parse("redis://cache?max_connections=7&timeout=3")
        assert (address.max_connections, address.wait, address.options) == (7, 3.0, {})

    def test_celerys_spelling_of_a_tls_option_is_understood(self) -> None:
        """`CERT_NONE` means `none`."""
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
    def test_an_invalid_option_is_refused_by_its_name(self, url: str, message: str) -> None:
        """The error is one line, raised where the URL is read: by the settings or a broker."""
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            Broker(url)
        assert "\n" not in str(caught.value)
        assert "cr/et" not in str(caught.value)

    async def test_options_reach_the_server_from_the_event_loop_and_from_a_thread(self, redis_url: str) -> None:
        """Accepted options take effect on asynchronous and on synchronous connections."""
        url = f"{redis_url}{'&' if '?' in redis_url else '?'}client_name=shop&health_check_interval=1&socket_timeout=3"
        client = connect(url)
        assert await client.client_getname() == "shop"
        await client.aclose()
        sync = connect_sync(url, longest_wait=0.5)
        assert isinstance(sync, redis.Redis)
        assert sync.client_getname() == "shop"
        assert vars(sync.connection_pool.make_connection())["socket_timeout"] == 0.5
        close_sync(sync)
