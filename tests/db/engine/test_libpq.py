"""A PostgreSQL URL as providers print it: it works with each driver, or a line names what does not."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import certifi
import pytest
from sqlalchemy import make_url, text

import db
from db.engine.libpq import options_for, settings_in
from db.engine.url import parse_url
from tests.conftest import StartPostgres
from tests.servers import Observer
from tests.tls import CERTIFICATE, in_tls
from worker.embedded.port import free_port

SETTINGS = ("application_name", "search_path", "statement_timeout")


@pytest.fixture(params=["asyncpg", "psycopg", "psycopg_async"])
def driver_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The test's database, through each driver that takes part of the URL in its own way."""
    return database_url.replace("asyncpg", request.param)


def extended(url: str, parameters: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{parameters}"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[db.Database[Any]]:
    database: db.Database[Any] = db.Database(url, **options)
    try:
        yield database
    finally:
        await database.dispose()


async def ask(database: db.Database[Any], query: str) -> Any:
    """The first value that the server gives, through a session of whichever kind."""
    async with db.scope():
        session = await db.session(database)
        if isinstance(session, db.Session):
            return await asyncio.to_thread(session.scalar, text(query))
        return await session.scalar(text(query))


async def settings(database: db.Database[Any]) -> dict[str, str]:
    return {name: str(await ask(database, f"SHOW {name}")) for name in SETTINGS}


DEFAULTS = {"application_name": "", "search_path": '"$user", public', "statement_timeout": "1min"}


@pytest.mark.parametrize(
    ("parameters", "changed"),
    [
        ("application_name=shop", {"application_name": "shop"}),
        ("fallback_application_name=shop", {"application_name": "shop"}),
        ("options=-csearch_path%3Dx", {"search_path": "x"}),
        (
            r"options=-c%20search_path%3Dx,\%20y%20--statement-timeout%3D2s",
            {"search_path": "x, y", "statement_timeout": "2s"},
        ),
        ("channel_binding=prefer&gssencmode=disable&sslmode=prefer", {}),
        ("connect_timeout=7&keepalives=1&keepalives_idle=30&target_session_attrs=any", {}),
    ],
)
async def test_each_parameter_takes_effect(driver_url: str, parameters: str, changed: dict[str, str]) -> None:
    """The parameter works as in libpq, and the limits beside it stay."""
    async with opened(extended(driver_url, parameters)) as database:
        assert await settings(database) == DEFAULTS | changed
        assert database.connect_timeout == (7 if "connect_timeout" in parameters else 10)
        assert await settings(database.sync) == DEFAULTS | changed


@pytest.mark.parametrize(
    ("parameters", "advice"),
    [
        ("channel_binding=require", r"channel_binding=require in the URL .*asyncpg .*postgresql\+psycopg_async://"),
        ("hostaddr=127.0.0.1", r"hostaddr in the URL .*asyncpg .*postgresql\+psycopg_async://"),
        ("sslsni=0", "sslsni=0 in the URL"),
        ("aplication_name=shop", "aplication_name in the URL is no parameter .*: write application_name"),
        ("pgbouncer=true", r"pgbouncer in the URL .*pooler=True"),
        ("connection_limit=1", "connection_limit in the URL .*WORKER_POOL_SIZE"),
        ("sslmode=no-verify", "sslmode in the URL is one of .*verify-full, not 'no-verify'"),
        ("ssl=maybe", "sslmode in the URL is one of"),
        ("target_session_attrs=write", "target_session_attrs in the URL is one of"),
        ("connect_timeout=soon", "connect_timeout in the URL is a whole number"),
        ("connect_timeout=0", "connect_timeout=0 in the URL would wait for ever"),
        (
            "sslmode=verify-ca&sslrootcert=/nowhere.pem",
            "sslrootcert in the URL names a file that is not there: /nowhere.pem",
        ),
        ("sslrootcert=system", "needs sslmode=verify-full"),
        ("sslmode=verify-full&sslrootcert=system&ssl_min_protocol_version=TLSv1.3", "sslrootcert=system and ssl_min"),
        ("sslmode=require&sslmode=disable", "sslmode stands twice"),
    ],
)
def test_unsupported_parameter_is_refused_by_name(parameters: str, advice: str) -> None:
    """One line names the parameter and says what to do, before any server is asked."""
    with pytest.raises(db.DatabaseURLError, match=advice) as refused:
        parse_url(f"postgresql://app:hunter2@host/name?{parameters}")
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async"])
def test_psycopg_takes_every_parameter_of_libpq(driver: str) -> None:
    """psycopg is built on libpq: only parameters unknown to libpq are refused."""
    parse_url(f"postgresql+{driver}://host/name?channel_binding=require&hostaddr=127.0.0.1&sslsni=0")
    with pytest.raises(db.DatabaseURLError, match=r"schema in the URL is no parameter .*search_path"):
        parse_url(f"postgresql+{driver}://host/name?schema=x")


async def test_the_host_that_answers_is_used(driver_url: str, postgres: Observer, own_postgres: StartPostgres) -> None:
    """Of several hosts the first that answers and fits `target_session_attrs` is used."""
    server = make_url(own_postgres().url)
    driver = make_url(driver_url).drivername
    url = f"{driver}://{server.username}@127.0.0.1:{free_port()},{server.host}:{server.port}/{server.database}"
    async with opened(extended(url, "target_session_attrs=read-write")) as database:
        assert await ask(database, "SELECT inet_server_port()") == server.port


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
async def test_server_with_an_unknown_certificate_is_refused(database_url: str, driver: str) -> None:
    """`sslmode` and `sslrootcert` reach each driver: a certificate of another authority is refused."""
    async with in_tls(database_url.replace("asyncpg", driver)) as url:
        direct = extended(url, "sslmode=verify-full&sslnegotiation=direct&sslrootcert=")
        async with opened(f"{direct}{CERTIFICATE}") as database:
            assert await ask(database, "SELECT 7") == 7
        for foreign in (certifi.where(), "system"):
            async with opened(direct + foreign) as database:
                with pytest.raises(Exception, match=r"certificate verify failed"):
                    await database.check()


async def test_network_options_are_set_on_asyncpgs_socket(own_postgres: StartPostgres) -> None:
    """asyncpg has no such options, so they are set on its socket."""
    url = own_postgres().url
    async with opened(extended(url, "keepalives_idle=31&tcp_user_timeout=32000")) as database, db.scope():
        session = await db.session(database)
        connection: Any = await (await session.connection()).get_raw_connection()
        network = connection.driver_connection._transport.get_extra_info("socket")
        assert network.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 31
        assert network.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 32000


@pytest.mark.parametrize(
    ("driver", "arguments"),
    [
        ("asyncpg", {"server_settings": {"application_name": "shop"}}),
        ("asyncpg", {"server_settings": {"options": "-c application_name=shop"}}),
        ("psycopg", {"options": "-c application_name=shop"}),
        ("psycopg_async", {"options": "-c application_name=shop"}),
    ],
)
async def test_connect_args_keep_the_other_limits_and_settings(
    database_url: str, driver: str, arguments: dict[str, Any]
) -> None:
    """A setting in `connect_args` leaves our limits and the URL's settings alone."""
    url = extended(database_url.replace("asyncpg", driver), "options=-csearch_path%3Dx")
    async with opened(url, engine_options={"connect_args": arguments}) as database:
        for each in (database, database.sync):
            assert await settings(each) == DEFAULTS | {"application_name": "shop", "search_path": "x"}


async def test_limit_in_connect_args_wins(database_url: str) -> None:
    """A limit in `connect_args` takes precedence over ours."""
    for arguments in ({"statement_timeout": "2s"}, {"options": "-c statement_timeout=2s"}):
        options = {"connect_args": {"server_settings": arguments}}
        async with opened(database_url, engine_options=options) as database:
            assert await settings(database) == DEFAULTS | {"statement_timeout": "2s"}


def test_options_that_are_no_settings_are_passed_on() -> None:
    """Other contents of `options` are passed on unchanged."""
    assert settings_in("-c a=b --c-d=e\\ f") == {"a": "b", "c_d": "e f"}
    assert settings_in("endpoint=ep-cool-1") == {}
    assert settings_in("-c") == {}
    assert settings_in("") == {}
    settings = {"a": "b c\\", "d": ""}
    assert settings_in(options_for(settings)) == settings
    assert options_for({"options": "endpoint=ep-cool-1", "a": "b"}) == "-c a=b endpoint=ep-cool-1"
